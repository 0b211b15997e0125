#!/usr/bin/env python3
"""Prints parameters, FLOPs and activations of each part of a detector.

    analyze_model.py --config-file FILE [--size H W] [KEY VALUE ...]

A FLOP is one multiply-add, as in fvcore; data sheets of processors count it as two. Batch norm
counts as two per element, nearest upsampling as one. Operators that fvcore cannot count are listed
under the table. An activation is an output element of a convolution or a matrix product. Inference
uses only the last head and computes shifts at the kept corners only. No weights are loaded.
"""

import argparse
import sys

import torch
from detectron2.modeling import build_model
from tabulate import tabulate

from centripetalnet.data import load_config
from centripetalnet.modeling.analysis import Costs, analyze


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of the image in pixels, after resizing (default: INPUT.CENTER_CROP_PAD.SIZE)",
    )
    parser.add_argument(
        "opts", default=[], nargs=argparse.REMAINDER, help="changes to the config, KEY VALUE"
    )
    return parser


def table(costs: Costs) -> str:
    """One row per part, the sum, and the operators that were not counted."""
    total = sum(x.flops for x in costs.parts)
    rows = [
        (x.name, x.parameters, x.flops / 1e9, 100 * x.flops / total, x.activations / 1e6)
        for x in costs.parts
    ]
    rows.append(("all", *(sum(column) for column in list(zip(*rows))[1:])))
    lines = tabulate(
        rows,
        headers=("part", "parameters", "GFLOP", "%", "M activations"),
        tablefmt="github",
        intfmt=",",
        floatfmt=("", "", ".3f", ".1f", ".2f"),
    )
    uncounted = ", ".join(f"{name} x {n}" for name, n in sorted(costs.uncounted.items()))
    return f"{lines}\n\nNot counted as FLOPs: {uncounted or 'nothing'}"


def main() -> None:
    args = get_parser().parse_args()
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    cfg.freeze()
    size = tuple(args.size or cfg.INPUT.CENTER_CROP_PAD.SIZE)
    torch.manual_seed(0)
    costs = analyze(build_model(cfg), size)
    height, width = costs.canvas_size
    print(f"one image of {size[0]} x {size[1]} pixels on a canvas of {height} x {width}\n")
    print(table(costs))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
