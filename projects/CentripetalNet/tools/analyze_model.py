#!/usr/bin/env python3
"""Prints the cost of each part of a detector; the command centripetalnet-analyze."""

import sys

from centripetalnet.commands.analyze import main

if __name__ == "__main__":
    sys.exit(main())
