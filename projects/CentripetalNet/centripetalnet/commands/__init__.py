"""What the project's commands do; each module has a ``main`` that gives the exit status."""
