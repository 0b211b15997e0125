#!/usr/bin/env python3
"""Draws what was predicted and why pairs were rejected; the command centripetalnet-explain."""

import sys

from centripetalnet.commands.explain import main

if __name__ == "__main__":
    sys.exit(main())
