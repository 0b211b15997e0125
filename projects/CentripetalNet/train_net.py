#!/usr/bin/env python3
"""Trains and evaluates CentripetalNet; the options are those of Detectron2's tools/train_net.py."""

from centripetalnet.command_line import argument_parser, launch_processes
from centripetalnet.engine import main

if __name__ == "__main__":
    args = argument_parser().parse_args()
    print("Command Line Args:", args)
    launch_processes(main, args)
