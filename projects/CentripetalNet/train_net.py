#!/usr/bin/env python3
"""Trains and evaluates CentripetalNet; the same as the command centripetalnet-train."""

import sys

from centripetalnet.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
