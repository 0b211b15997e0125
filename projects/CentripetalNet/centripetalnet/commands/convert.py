"""Converts checkpoints of MMDetection or of the papers' authors, and back."""

import argparse
import os

import torch

from centripetalnet.checkpoint.conversion import convert_to_ours, convert_to_theirs
from centripetalnet.checkpoint.safe_load import SAFETENSORS, as_safetensors
from centripetalnet.commands.common import command
from centripetalnet.data import load_config
from centripetalnet.io.files import atomic_file

DESCRIPTION = f"""{__doc__}

    %(prog)s SRC DST              to this project: MODEL.WEIGHTS DST
    %(prog)s SRC DST --to mmdet   from this project to MMDetection

If SRC already has this project's names, DST gets its weights and normalisation in DST's format,
and no optimizer.

SRC is read as tensors only; nothing in it is executed. Values are not changed. Tensors that are
missing, unexpected or of a wrong shape are an error that lists them all.
"""
THEIRS = {
    "mmdet": "MMDetection",
    "paper": "CentripetalNet's authors",
    "cornernet": "CornerNet's authors",
}


def get_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", help="checkpoint to read, .pth or .safetensors")
    parser.add_argument("dst", metavar="DST", help="checkpoint to write, .pth or .safetensors")
    parser.add_argument("--to", choices=list(THEIRS), help="names of DST, if not this project's")
    parser.add_argument(
        "--config-file",
        default="centripetal_hg104",
        metavar="FILE",
        help="describes the network, a path or the name of a config of the package; by default "
        "%(default)s. The number of classes is SRC's",
    )
    parser.add_argument(
        "--drop",
        metavar="REGEX",
        help="drop the tensors of SRC whose names match, a mask branch for example",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="changes to the config, KEY VALUE"
    )
    return parser


def save(content: dict, path: str) -> None:
    """Writes a checkpoint in the format of its extension, under its name only when complete."""
    with atomic_file(path, "wb") as file:
        if path.endswith(SAFETENSORS):
            file.write(as_safetensors(content))
        else:
            # To a name instead of a file PyTorch reports a folder that is not there as it likes.
            torch.save(content, file)


def run(args: argparse.Namespace) -> None:
    """Converts a checkpoint and prints a summary.

    Args:
        args: of :func:`get_parser`.

    Raises:
        OSError, ValueError: if SRC cannot be read or does not fit, or DST cannot be written.
    """
    cfg = load_config(args.config_file, args.opts)
    if os.path.exists(args.dst) and os.path.samefile(args.src, args.dst):
        raise ValueError(f"SRC and DST are the same file, {args.src}; name another DST")
    if args.to:
        content, converted = convert_to_theirs(args.src, cfg, args.to, args.drop)
    else:
        converted = convert_to_ours(args.src, cfg, args.drop)
        content = converted.checkpoint()
    save(content, args.dst)
    known = "as the file says" if converted.convention_is_from_file else "assumed, as released"
    if converted.convention is None:
        stated = "not stated in SRC"
    else:
        stated = f"{' '.join(converted.convention.options())} ({known})"
    if args.to:
        stated += f"; not in DST, set it in the config of {THEIRS[args.to]}"
    origin = "this project" if converted.has_our_names else THEIRS[converted.origin]
    classes = ", ".join(converted.classes[:5]) + ", ..." if converted.classes else "not named"
    values = sum(x.numel() for x in converted.weights.values())
    print(f"{args.dst}: {len(converted.weights)} tensors, {values:,} values")
    print(f"  from        {args.src}, names of {origin}")
    print(f"  classes     {converted.num_classes} ({classes})")
    print(f"  input       {stated}")
    for what, names in (("left out", converted.left_out), ("added", converted.added)):
        if names:
            print(f"  {what:<12}{len(names)}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}")


main = command(get_parser, run)
