#!/usr/bin/env python3
"""Checks a COCO dataset; the same as the command centripetalnet-check."""

import sys

from centripetalnet.commands.check import main

if __name__ == "__main__":
    sys.exit(main())
