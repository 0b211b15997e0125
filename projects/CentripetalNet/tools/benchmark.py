#!/usr/bin/env python3
"""Measures time and memory of the parts; the command centripetalnet-benchmark."""

import sys

from centripetalnet.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
