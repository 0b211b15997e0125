"""Prints parameters, FLOPs and activations of each part of a detector.

    %(prog)s --config-file FILE [--size H W] [--depth N] [KEY VALUE ...]

A FLOP is one multiply-add, as in fvcore; data sheets of processors count it as two. Operators that
fvcore cannot count are listed under the table. An activation is an output element of a convolution
or a matrix product. Inference uses only the last head and computes shifts at the kept corners only.
No weights are loaded.
"""

import argparse

import torch
from detectron2.modeling import build_model
from fvcore.nn import flop_count_table

from centripetalnet.commands.common import command, config_parser
from centripetalnet.data import load_config
from centripetalnet.modeling.analysis import analyze


def get_parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__, weights=False)
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of the image in pixels, after resizing (default: INPUT.CENTER_CROP_PAD.SIZE)",
    )
    parser.add_argument(
        "--depth", type=int, default=4, metavar="N", help="levels of modules (default 4)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints the table.

    Args:
        args: of :func:`get_parser`.
    """
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    size = tuple(args.size or cfg.INPUT.CENTER_CROP_PAD.SIZE)
    torch.manual_seed(0)
    model = build_model(cfg)
    flops, activations = analyze(model, size)
    height, width = model.canvas_size(size)
    print(f"one image of {size[0]} x {size[1]} pixels on a canvas of {height} x {width}\n")
    print(flop_count_table(flops, max_depth=args.depth, activations=activations))
    uncounted = ", ".join(f"{name} x {n}" for name, n in sorted(flops.unsupported_ops().items()))
    print(f"\nNot counted as FLOPs: {uncounted or 'nothing'}")


main = command(get_parser, run)
