#!/usr/bin/env python3
"""Converts checkpoints from and to other implementations, as the command centripetalnet-convert."""

import sys

from centripetalnet.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
