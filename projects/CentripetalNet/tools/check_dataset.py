#!/usr/bin/env python3
"""Looks what is wrong with a COCO dataset; the command centripetalnet-check from here."""

import sys

from centripetalnet.commands.check import main

if __name__ == "__main__":
    sys.exit(main())
