"""Prints parameters, FLOPs and activations of each part of a detector.

    %(prog)s --config-file FILE [--size H W] [KEY VALUE ...]

A FLOP is one multiply-add, as in fvcore; data sheets of processors count it as two. Batch norm
counts as two per element, nearest upsampling as one. Operators that fvcore cannot count are listed
under the table. An activation is an output element of a convolution or a matrix product. Inference
uses only the last head and computes shifts at the kept corners only. No weights are loaded.
"""

import argparse
from typing import Optional, Sequence

import torch
from detectron2.modeling import build_model
from tabulate import tabulate

from centripetalnet.commands.common import config_parser, exit_status
from centripetalnet.data import load_config
from centripetalnet.modeling.analysis import Costs, analyze


def get_parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__, weights=False)
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of the image in pixels, after resizing (default: INPUT.CENTER_CROP_PAD.SIZE)",
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


def run(args: argparse.Namespace) -> None:
    """Prints the table.

    Args:
        args: of :func:`get_parser`.
    """
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    cfg.freeze()
    size = tuple(args.size or cfg.INPUT.CENTER_CROP_PAD.SIZE)
    torch.manual_seed(0)
    costs = analyze(build_model(cfg), size)
    height, width = costs.canvas_size
    print(f"one image of {size[0]} x {size[1]} pixels on a canvas of {height} x {width}\n")
    print(table(costs))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command ``centripetalnet-analyze``, also ``tools/analyze_model.py``.

    Args:
        argv: the arguments, by default those of the command line.

    Returns:
        The exit status: 0, or 1 after an error.
    """
    return exit_status(run, get_parser().parse_args(argv))
