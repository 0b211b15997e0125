#!/usr/bin/env python3
"""Builds, checks and measures the detector on this machine's GPU, for `make gpu-check`."""

import sys

from centripetalnet.commands.gpu_check import main

if __name__ == "__main__":
    sys.exit(main())
