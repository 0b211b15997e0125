#!/usr/bin/env python3
"""Detects objects in pictures and videos and draws them; centripetalnet-demo from here."""

import sys

from centripetalnet.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
