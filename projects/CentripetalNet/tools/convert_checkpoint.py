#!/usr/bin/env python3
"""Converts checkpoints of other implementations, and back; centripetalnet-convert from here."""

import sys

from centripetalnet.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
