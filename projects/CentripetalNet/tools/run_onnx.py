#!/usr/bin/env python3
"""Detects with an exported file; the same as the command centripetalnet-run-onnx.

It runs that module by its path, since importing the package needs PyTorch.
"""

import os
import runpy

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

if __name__ == "__main__":
    module = os.path.join(PROJECT, "centripetalnet", "commands", "run_onnx.py")
    runpy.run_path(module, run_name="__main__")
