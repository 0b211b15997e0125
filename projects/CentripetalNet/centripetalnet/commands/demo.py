"""Draws detections in images and videos. The options follow Detectron2's demo."""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

import cv2
import numpy as np
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from centripetalnet.commands.common import config_parser, exit_status
from centripetalnet.io.pictures import find_pictures, output_paths, read_picture, write_picture
from centripetalnet.io.videos import Video, video_path, write_video
from centripetalnet.modeling.precision import PRECISIONS
from centripetalnet.predictor import Predictor, load_predictor
from centripetalnet.visualization import draw_detections

WINDOW_NAME = "CentripetalNet detections"
CAMERA = 0
ESCAPE = 27
# Always images per second; tqdm's default switches to seconds per image below one.
BAR_FORMAT = (
    "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
)


def get_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = config_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        metavar="IMAGE",
        help="images, folders of images, glob patterns such as 'folder/*.jpg', or - for a list of "
        "files on standard input, one per line",
    )
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--webcam", action="store_true", help="the camera, shown in a window")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="folder for the results, or a file for one image or a video; without it a window "
        "opens (any key for the next image, Escape to end)",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="lowest score of a box that is drawn, from 0 to 1 (default %(default)s)",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: mirror images and scales of TEST.AUG; slower",
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="precision of the convolutions (default: TEST.PRECISION of the config)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: MODEL.DEVICE)")
    return parser


def predictor_of(args: argparse.Namespace) -> Predictor:
    """The detector that the options ask for."""
    return load_predictor(
        args.config_file,
        None,
        device=args.device,
        precision=args.precision,
        tta=args.tta,
        opts=args.opts,
    )


def drawn(
    predictor: Predictor, frames: Iterable[np.ndarray], min_score: float
) -> Iterator[tuple[np.ndarray, int]]:
    """Each image, (h0, w0, 3) uint8 in BGR order, with its detections, and their number."""
    for frame in frames:
        instances = predictor.detect(frame, min_score)
        image = draw_detections(frame[:, :, ::-1], instances, predictor.metadata, min_score)
        yield np.ascontiguousarray(image[:, :, ::-1]), len(instances)


def _bar(items: Iterable, **options) -> tqdm:
    return tqdm(items, unit=" images", bar_format=BAR_FORMAT, dynamic_ncols=True, **options)


def draw_pictures(args: argparse.Namespace) -> int:
    """Draws the images of ``--input``. Unreadable images are reported at once and at the end.

    Args:
        args: of :func:`get_parser`.

    Returns:
        The exit status: 1 if an image could not be read.
    """
    # File names need not be valid in the encoding of the terminal.
    paths = find_pictures(args.input, map(os.fsdecode, sys.stdin.buffer))
    targets = output_paths(args.output, paths) if args.output else [None] * len(paths)
    predictor = predictor_of(args)
    unreadable: list[str] = []
    for path, target in zip(_bar(paths, disable=not args.output), targets):
        start = time.perf_counter()
        try:
            image = read_picture(path)
        except OSError as error:
            unreadable.append(str(error))
            tqdm.write(f"error: {error}", file=sys.stdout)
            continue
        ((picture, count),) = drawn(predictor, [image], args.confidence_threshold)
        seconds = time.perf_counter() - start
        where = f" -> {target}" if target else ""
        if target:
            write_picture(picture, target)
        tqdm.write(f"{path}: detected {count} objects in {seconds:.2f}s{where}", file=sys.stdout)
        if not target and show(picture, wait=0):
            break
    if unreadable:
        print(f"error: {len(unreadable)} of {len(paths)} images were not drawn:", file=sys.stderr)
        print(*(f"  {x}" for x in unreadable), sep="\n", file=sys.stderr)
    return 1 if unreadable else 0


def draw_video(args: argparse.Namespace) -> None:
    """Draws the frames of ``--video-input`` or ``--webcam`` one at a time.

    Args:
        args: of :func:`get_parser`.
    """
    video = Video(CAMERA if args.webcam else args.video_input)
    target = video_path(args.output, args.video_input) if args.output else None
    predictor = predictor_of(args)
    if target is None:
        for picture, _ in drawn(predictor, video, args.confidence_threshold):
            if show(picture, wait=1):
                break
        return
    counts: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        frames = _bar(video, total=video.num_frames)
        for picture, count in drawn(predictor, frames, args.confidence_threshold):
            counts.append(count)
            yield picture

    num_frames = write_video(target, pictures(), video.rate, video.size)
    found = f"detected {sum(counts)} objects in {num_frames} frames"
    print(f"{args.video_input}: {found} -> {target}")
    if video.num_frames is not None and num_frames < video.num_frames:
        print(
            f"warning: {args.video_input}: {num_frames} of the {video.num_frames} frames in its "
            "header could be read",
            file=sys.stderr,
        )


def open_window(remedy: str) -> None:
    """Opens the window, or fails before anything is computed.

    Args:
        remedy: how to work without a window, for the error message.

    Raises:
        OSError: if it cannot be opened.
    """
    problem = None
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        # OpenCV with Qt would abort the process.
        problem = "there is no display (DISPLAY is not set)"
    else:
        try:
            cv2.namedWindow(WINDOW_NAME, cv2.WINDOW_NORMAL)
        except cv2.error:
            problem = f"this OpenCV ({cv2.__version__}) was built without windows"
    if problem is not None:
        raise OSError(f"cannot open a window: {problem}. {remedy}")


def show(picture: np.ndarray, wait: int) -> bool:
    """Shows an image in the window; returns whether Escape was pressed.

    Args:
        picture: (h0, w0, 3) uint8 in BGR order.
        wait: milliseconds to wait for a key, 0 for no limit.
    """
    cv2.imshow(WINDOW_NAME, picture)
    return cv2.waitKey(wait) == ESCAPE


def run(args: argparse.Namespace) -> Optional[int]:
    """Draws what the arguments ask for; returns the exit status.

    Args:
        args: of :func:`get_parser`.
    """
    if args.webcam:
        open_window("Record a video and use --video-input FILE --output FOLDER.")
    elif not args.output:
        open_window("Use --output FOLDER to write files.")
    return draw_pictures(args) if args.input else draw_video(args)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command ``centripetalnet-demo``, also ``demo/demo.py``.

    Args:
        argv: the arguments, by default those of the command line.

    Returns:
        The exit status: 0, or 1 after an error or if an image could not be read.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold is {args.confidence_threshold}; expected 0 to 1")
    if args.webcam and args.output:
        parser.error("--webcam is shown in a window and cannot be combined with --output")
    setup_logger(name="centripetalnet")
    # The encoding of the terminal may lack letters of file names.
    sys.stdout.reconfigure(errors="backslashreplace")
    return exit_status(run, args)
