#!/usr/bin/env python3
"""Trains and evaluates CentripetalNet; the command centripetalnet-train from here."""

import sys

from centripetalnet.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
