#!/usr/bin/env python3
"""Detects objects in pictures and draws them; the options are those of Detectron2's demo."""

import argparse
import glob
import os
import sys
import time
from typing import List

import cv2
import tqdm
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.logger import setup_logger

from centripetalnet.config import load_config
from centripetalnet.predictor import Predictor
from centripetalnet.visualization import draw_detections

WINDOW_NAME = "CentripetalNet detections"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="pictures, or glob patterns such as 'folder/*.jpg'",
    )
    parser.add_argument(
        "--output",
        help="a folder for the drawn pictures, or a file if there is one picture; "
        "without it they are shown in a window",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        help="lowest score of a box that is drawn",
    )
    parser.add_argument(
        "--opts",
        help="changes to the config as KEY VALUE pairs, MODEL.WEIGHTS model.pth above all",
        default=[],
        nargs=argparse.REMAINDER,
    )
    return parser


def find_pictures(patterns: List[str]) -> List[str]:
    """Files that the arguments name; a pattern that names none is an error."""
    paths: List[str] = []
    for pattern in patterns:
        pattern = os.path.expanduser(pattern)
        # A file may have a bracket in its name.
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        if not found:
            raise FileNotFoundError(
                f"--input {pattern}: there is no such file (seen from {os.getcwd()})"
            )
        paths += found
    return paths


def output_path(output: str, path: str, num_pictures: int) -> str:
    """Where the drawn picture of ``path`` goes; never onto the picture itself."""
    is_file = bool(os.path.splitext(output)[1]) and not os.path.isdir(output)
    if is_file and num_pictures > 1:
        raise ValueError(
            f"--output {output} is a file, but there are {num_pictures} pictures; name a folder"
        )
    target = output if is_file else os.path.join(output, os.path.basename(path))
    if os.path.realpath(target) == os.path.realpath(path):
        raise ValueError(
            f"--output {output} would overwrite the picture {path}; name another folder"
        )
    return target


def main() -> None:
    args = get_parser().parse_args()
    logger = setup_logger(name="centripetalnet")
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    paths = find_pictures(args.input)
    targets = [args.output and output_path(args.output, path, len(paths)) for path in paths]
    if args.output and len(set(targets)) != len(targets):
        raise ValueError(
            "--input names pictures of the same name in different folders; run them apart"
        )

    predictor = Predictor(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__unused")
    for path, target in zip(tqdm.tqdm(paths, unit="image", disable=not args.output), targets):
        image = read_image(path, format="BGR")
        start = time.perf_counter()
        instances = predictor(image)["instances"]
        seconds = time.perf_counter() - start
        count = int((instances.scores >= args.confidence_threshold).sum())
        drawn = draw_detections(
            image[:, :, ::-1], instances, metadata, min_score=args.confidence_threshold
        )[:, :, ::-1]
        logger.info("%s: detected %d objects in %.2fs", path, count, seconds)
        if target:
            os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
            if not cv2.imwrite(target, drawn):
                raise OSError(f"cannot write {target}")
        else:
            cv2.namedWindow(WINDOW_NAME, cv2.WINDOW_NORMAL)
            cv2.imshow(WINDOW_NAME, drawn)
            if cv2.waitKey(0) == 27:
                break


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
