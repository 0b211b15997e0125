#!/usr/bin/env python3
"""Writes a detector to a file for other programs; centripetalnet-export from here."""

import sys

from centripetalnet.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
