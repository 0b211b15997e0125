#!/usr/bin/env python3
"""Converts CentripetalNet checkpoints of MMDetection or of the paper's authors, and back.

    convert_checkpoint.py SRC DST              to this project: MODEL.WEIGHTS DST
    convert_checkpoint.py SRC DST --to mmdet   from this project to MMDetection

SRC is read as tensors only; nothing in it is executed. Every value arrives unchanged, and a tensor
that is missing, of a wrong shape or fitting nowhere is an error that lists all of them.
"""

import argparse
import os
import sys
from contextlib import suppress

import torch

from centripetalnet.checkpoint.conversion import convert_to_ours, convert_to_theirs
from centripetalnet.config import load_config

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
THEIRS = {"mmdet": "MMDetection", "paper": "the paper's authors"}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", help="checkpoint to read")
    parser.add_argument("dst", metavar="DST", help="checkpoint to write")
    parser.add_argument("--to", choices=list(THEIRS), help="names of DST, if not this project's")
    parser.add_argument(
        "--config-file",
        default=os.path.join(PROJECT, "configs", "centripetal_hg104.yaml"),
        metavar="FILE",
        help="describes the network, Hourglass-104 by default; the number of classes is SRC's",
    )
    parser.add_argument(
        "--drop",
        metavar="REGEX",
        help="leave out the tensors of SRC whose name this matches, a mask branch for example",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="changes to the config, KEY VALUE"
    )
    return parser


def save(content: dict, path: str) -> None:
    """Under its name only when complete."""
    unfinished = f"{path}.unfinished"
    try:
        # To a name instead of a file PyTorch reports a folder that is not there as it likes.
        with open(unfinished, "wb") as file:
            torch.save(content, file)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.remove(unfinished)
        raise


def main(argv=None) -> None:
    args = get_parser().parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    if os.path.exists(args.dst) and os.path.samefile(args.src, args.dst):
        raise ValueError(f"SRC and DST are the same file, {args.src}; name another DST")
    if args.to:
        content = convert_to_theirs(args.src, cfg, args.to)
        save(content, args.dst)
        print(f"{args.dst}: {len(content['state_dict'])} tensors, names of {THEIRS[args.to]}")
        return

    converted = convert_to_ours(args.src, cfg, args.drop)
    save(converted.checkpoint(), args.dst)
    known = "as the file says" if converted.convention_is_from_file else "assumed, as released"
    classes = ", ".join(converted.classes[:5]) + ", ..." if converted.classes else "not named"
    values = sum(x.numel() for x in converted.weights.values())
    print(f"{args.dst}: {len(converted.weights)} tensors, {values:,} values")
    print(f"  from        {args.src}, names of {THEIRS[converted.origin]}")
    print(f"  classes     {converted.num_classes} ({classes})")
    print(f"  input       {' '.join(converted.convention.options())} ({known})")
    for what, names in (("left out", converted.left_out), ("added", converted.added)):
        if names:
            print(f"  {what:<12}{len(names)}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
