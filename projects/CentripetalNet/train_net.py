#!/usr/bin/env python3
"""Trains and evaluates CentripetalNet; the options are those of Detectron2's tools/train_net.py."""

from detectron2.engine import default_argument_parser, launch

from centripetalnet.engine import main

if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    print("Command Line Args:", args)
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
