#!/usr/bin/env python3
"""Measures size, speed and training memory of configs; the command centripetalnet-compare."""

import sys

from centripetalnet.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
