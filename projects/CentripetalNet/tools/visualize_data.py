#!/usr/bin/env python3
"""Draws annotations or training samples; the command centripetalnet-visualize-data."""

import sys

from centripetalnet.commands.visualize_data import main

if __name__ == "__main__":
    sys.exit(main())
