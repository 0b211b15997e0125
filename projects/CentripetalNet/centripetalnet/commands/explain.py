"""Draws what the detector predicted in an image, and why pairs of corners were rejected.

    %(prog)s --config-file FILE --input IMAGE... --output FOLDER --opts MODEL.WEIGHTS model.pth

It uses neither test-time augmentation nor masks.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Optional

import cv2
import numpy as np
from detectron2.utils.logger import setup_logger

from centripetalnet.commands.common import command, config_parser
from centripetalnet.data import load_config, metadata_of_tests
from centripetalnet.explain import choose_pair, explain, explanation_figure
from centripetalnet.io.pictures import find_pictures, read_picture
from centripetalnet.predictor import Predictor
from centripetalnet.visualization import rendered


def get_parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="IMAGE",
        help="images, folders, or glob patterns such as 'folder/*.jpg'",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder of the figures, NAME.explain.png"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--pair",
        metavar="CLASS:X,Y",
        help="show the best pair of this class (name or index) whose central region contains this "
        "pixel of the image",
    )
    chosen.add_argument(
        "--near",
        metavar="X,Y",
        help="the same for any class (default: the best rejected pair)",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.3,
        help="lowest score of the corners and boxes that are drawn (default 0.3)",
    )
    return parser


def parse_point(text: str, option: str) -> tuple[float, float]:
    """Parses X,Y."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = float("nan")
    if not np.isfinite((x, y)).all():
        raise ValueError(f"{option} {text}: expected two numbers, such as 120,80")
    return x, y


def parse_class(text: str, names: Optional[Sequence[str]], num_classes: int) -> int:
    """The index of a class from its name or index."""
    if names is not None and text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    known = f"0 to {num_classes - 1}" + (f", {', '.join(names)}" if names is not None else "")
    raise ValueError(f"--pair: there is no class {text!r}; known are {known}")


def sheet_path(folder: str, picture: str) -> str:
    name = os.path.splitext(os.path.basename(picture))[0]
    return os.path.join(folder, f"{name}.explain.png")


def run(args: argparse.Namespace) -> None:
    """Draws the sheets.

    Args:
        args: of :func:`get_parser`.
    """
    logger = setup_logger(name="centripetalnet")
    cfg = load_config(args.config_file, args.opts)
    cfg.TEST.AUG.ENABLED = False
    cfg.freeze()
    if not 0 <= args.min_score <= 1:
        raise ValueError(f"--min-score is {args.min_score}; expected a number from 0 to 1")
    pictures = find_pictures(args.input)
    sheets = [sheet_path(args.output, picture) for picture in pictures]
    if len(set(sheets)) != len(sheets):
        raise ValueError("--input has several images of one file name. Use a call for each.")
    names = metadata_of_tests(cfg).get("thing_classes")
    near, cls = None, None
    if args.pair is not None:
        text, _, point = args.pair.rpartition(":")
        cls = parse_class(text, names, cfg.MODEL.CENTRIPETALNET.NUM_CLASSES)
        near = parse_point(point, f"--pair {text}:")
    elif args.near is not None:
        near = parse_point(args.near, "--near")

    predictor = Predictor(cfg)
    os.makedirs(args.output, exist_ok=True)
    for picture, sheet in zip(pictures, sheets):
        image = read_picture(picture)
        seen = predictor.model_input(image)
        explanation = explain(predictor.model, seen["image"], (seen["height"], seen["width"]))
        pair = choose_pair(explanation, near, cls)
        count = int((explanation.detection_scores >= args.min_score).sum())
        figure = explanation_figure(
            image[:, :, ::-1],
            explanation,
            pair,
            names,
            title=f"{os.path.basename(picture)}, {image.shape[1]} x {image.shape[0]} pixels",
            min_score=args.min_score,
        )
        if not cv2.imwrite(sheet, rendered(figure)[:, :, ::-1]):
            raise OSError(f"cannot write {sheet}")
        logger.info("%s: %d boxes, %s", picture, count, sheet)


main = command(get_parser, run)
