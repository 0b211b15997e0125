#!/usr/bin/env python3
"""Says why objects of a dataset were missed; the command centripetalnet-report."""

import sys

from centripetalnet.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
