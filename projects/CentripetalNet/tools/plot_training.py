#!/usr/bin/env python3
"""Draws the curves of a training; the command centripetalnet-plot."""

import sys

from centripetalnet.commands.plot import main

if __name__ == "__main__":
    sys.exit(main())
