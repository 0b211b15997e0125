#!/usr/bin/env python3
"""Exports a detector as ONNX or PyTorch program; the same as the command centripetalnet-export."""

import sys

from centripetalnet.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
