"""Finds everything in a COCO dataset that training or evaluation would fail on or ignore."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Optional

from centripetalnet.data.check.annotations import check_annotations

# Importing anything of centripetalnet.data registers the project's datasets.
from centripetalnet.data.check.datasets import ready_metadata
from centripetalnet.data.check.images import check_images
from centripetalnet.data.check.reading import read_annotation_file
from centripetalnet.data.check.report import EXPECTED, Report
from centripetalnet.io.files import atomic_file

DESCRIPTION = f"""{__doc__}

    %(prog)s --dataset NAME                   a registered dataset
    %(prog)s --json FILE --images FOLDER      any other dataset

Decodes every image, and prints a table of the kinds of problems and one of the classes. A missing
mask is not reported: only training of masks needs it, and names the image then. Exit status: 0
without errors, 1 with errors, 2 if the dataset could not be checked.
"""


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The options of the command. Exits with a message and status 2 if one is invalid."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="name of a registered dataset")
    source.add_argument("--json", metavar="FILE", help="annotation file in COCO format")
    add = parser.add_argument
    add("--images", metavar="FOLDER", help="folder of the images of --json")
    add("--no-images", action="store_true", help="check the annotation file only")
    workers = "processes that decode images, 0 for the main process (default: one per core)"
    add("--num-workers", type=int, default=os.cpu_count() or 1, metavar="N", help=workers)
    add("--list", metavar="FILE", help="also write every problem, one JSON object per line")
    clean = "also write the annotation file without invalid images and annotations"
    add("--output", metavar="FILE", help=clean)
    args = parser.parse_args(argv)
    if args.dataset and args.images:
        parser.error("--images goes with --json; a registered dataset has its folder")
    if args.json and not (args.images or args.no_images):
        parser.error("--json needs --images FOLDER, or --no-images")
    if args.num_workers < 0:
        parser.error(f"--num-workers is {args.num_workers}; expected 0 or more")
    if args.list is not None and args.list == args.output:
        parser.error("--list and --output name the same file")
    for option, path in (("--list", args.list), ("--output", args.output)):
        if path is not None and os.path.lexists(path):
            parser.error(f"{option} {path} exists; name another file, or remove it")
        if path is not None and not os.path.isdir(os.path.dirname(path) or os.curdir):
            parser.error(f"{option} {path}: there is no such folder")
    return args


def run(args: argparse.Namespace) -> Report:
    """Checks a dataset, prints the report and writes the requested files."""
    json_file, image_root = args.json, args.images
    if args.dataset:
        metadata = ready_metadata(args.dataset)
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if json_file is None or image_root is None:
            raise LookupError(f"the dataset {args.dataset} is not from a COCO annotation file")
    if not args.no_images and not os.path.isdir(image_root):
        raise FileNotFoundError(f"there is no folder {image_root}, expected that of the images")
    report = check_annotations(read_annotation_file(json_file), json_file)
    if not args.no_images:
        report.problems += check_images(
            report.content["images"], image_root, args.num_workers, sys.stderr.isatty()
        )
    print(f"{report.format()}\n\n{report.format_classes()}")
    if args.list is not None:
        with atomic_file(args.list) as file:
            for problem in report.problems:
                entry = {"severity": problem.severity, **problem._asdict()}
                file.write(json.dumps({**entry, "expected": EXPECTED[problem.kind]}) + "\n")
        print(f"\n{args.list}: {len(report.problems)} problems")
    if args.output is not None:
        cleaned = report.without_errors()
        with atomic_file(args.output) as file:
            file.write(json.dumps(cleaned))
        left = [f"{len(cleaned.get(x, []))} {x}" for x in ("images", "annotations")]
        print(f"\n{args.output}: {' and '.join(left)}")
    return report


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command ``centripetalnet-check``, also ``tools/check_dataset.py``.

    Returns:
        The exit status: 0 without errors in the dataset, 1 with errors, 2 if not checked.
    """
    args = parse_arguments(argv)
    # The encoding of the terminal may lack letters of file and class names.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return 1 if run(args).invalid else 0
    # A file that is not in COCO format is an error of the dataset, not of the call.
    except (ValueError, OSError, LookupError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ValueError) else 2
