#!/usr/bin/env python3
"""Trains variants of the detector and compares them; the command centripetalnet-ablation."""

import sys

from centripetalnet.commands.ablation import main

if __name__ == "__main__":
    sys.exit(main())
