#!/usr/bin/env python3
"""Draws detections in images and videos; the same as the command centripetalnet-demo."""

import sys

from centripetalnet.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
