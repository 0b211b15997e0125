"""Draws detections in images and videos. The options follow Detectron2's demo."""

import argparse
import os
import sys
import time
from typing import Optional

import cv2
import numpy as np
from tqdm import tqdm

from centripetalnet.commands.common import command, config_parser
from centripetalnet.io.pictures import find_pictures, output_paths, read_picture, write_picture
from centripetalnet.io.videos import CODECS, Video, write_video
from centripetalnet.modeling.precision import PRECISIONS
from centripetalnet.predictor import Predictor, load_predictor
from centripetalnet.visualization import draw_detections

WINDOW_NAME = "CentripetalNet detections"
CAMERA = 0
ESCAPE = 27


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
    options = {"device": args.device, "precision": args.precision, "tta": args.tta}
    return load_predictor(args.config_file, None, opts=args.opts, **options)


def drawn(predictor: Predictor, image: np.ndarray, min_score: float) -> tuple[np.ndarray, int]:
    """An image, (h0, w0, 3) uint8 in BGR order, with its detections, and their number."""
    instances = predictor.detect(image, min_score)
    picture = draw_detections(image[:, :, ::-1], instances, predictor.metadata, min_score)
    return np.ascontiguousarray(picture[:, :, ::-1]), len(instances)


def draw_pictures(args: argparse.Namespace) -> int:
    """Draws the images of ``--input``; names those that cannot be read, and returns then 1."""
    # File names need not be valid in the encoding of the terminal.
    paths = find_pictures(args.input, map(os.fsdecode, sys.stdin.buffer))
    targets = output_paths(args.output, paths) if args.output else [None] * len(paths)
    predictor = predictor_of(args)
    unreadable: list[str] = []
    for path, target in zip(tqdm(paths, unit="image", disable=not args.output), targets):
        start = time.perf_counter()
        try:
            image = read_picture(path)
        except OSError as error:
            unreadable.append(f"  {error}")
            continue
        picture, count = drawn(predictor, image, args.confidence_threshold)
        seconds = time.perf_counter() - start
        where = f" -> {target}" if target else ""
        tqdm.write(f"{path}: detected {count} objects in {seconds:.2f}s{where}")
        if target:
            write_picture(picture, target)
        elif show(picture, wait=0):
            break
    if unreadable:
        print(f"error: {len(unreadable)} of {len(paths)} images were not drawn:", file=sys.stderr)
        print(*unreadable, sep="\n", file=sys.stderr)
    return 1 if unreadable else 0


def draw_video(args: argparse.Namespace) -> None:
    """Draws the frames of ``--video-input`` or ``--webcam`` one at a time."""
    source = CAMERA if args.webcam else args.video_input
    video = Video(source)
    if args.output:
        (target,) = output_paths(args.output, [source], tuple(CODECS), kept=())
    predictor = predictor_of(args)
    frames = tqdm(video, total=video.num_frames, unit="image", disable=not args.output)
    pictures = (drawn(predictor, frame, args.confidence_threshold)[0] for frame in frames)
    if not args.output:
        for picture in pictures:
            if show(picture, wait=1):
                break
        return
    num_frames = write_video(target, pictures, video.rate, video.size)
    print(f"{source}: {num_frames} frames -> {target}")
    if video.num_frames is not None and num_frames < video.num_frames:
        problem = f"{num_frames} of the {video.num_frames} frames in its header could be read"
        print(f"warning: {source}: {problem}", file=sys.stderr)


def open_window(remedy: str) -> None:
    """Opens the window, or fails before anything is computed.

    Args:
        remedy: how to work without a window, for the error message.

    Raises:
        OSError: if it cannot be opened.
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_display:
        # OpenCV with Qt would abort the process.
        raise OSError(f"cannot open a window: there is no display (DISPLAY is not set). {remedy}")
    try:
        cv2.namedWindow(WINDOW_NAME, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise OSError(
            f"cannot open a window: OpenCV {cv2.__version__} was built without windows. {remedy}"
        ) from error


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

    Raises:
        ValueError: if options are invalid or contradict each other.
    """
    if not 0 <= args.confidence_threshold <= 1:
        raise ValueError(f"--confidence-threshold is {args.confidence_threshold}; expected 0 to 1")
    if args.webcam and args.output:
        raise ValueError("--webcam is shown in a window and cannot be combined with --output")
    # The encoding of the terminal may lack letters of file names.
    sys.stdout.reconfigure(errors="backslashreplace")
    if args.webcam:
        open_window("Record a video and use --video-input FILE --output FOLDER.")
    elif not args.output:
        open_window("Use --output FOLDER to write files.")
    return draw_pictures(args) if args.input else draw_video(args)


main = command(get_parser, run)
