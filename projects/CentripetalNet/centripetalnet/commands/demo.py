"""Draws detections in images and videos. The options follow Detectron2's demo."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Optional

import cv2
import numpy as np
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from centripetalnet.commands.common import config_parser, exit_status
from centripetalnet.io.pictures import find_pictures, output_paths, read_picture, write_picture
from centripetalnet.io.videos import Video, VideoFile, find_output
from centripetalnet.modeling.precision import PRECISIONS
from centripetalnet.predictor import load_predictor
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


def check_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exits with an error message for the first invalid argument."""
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold is {args.confidence_threshold}; expected 0 to 1")
    if args.webcam and args.output:
        parser.error("--webcam is shown in a window and cannot be combined with --output")


class Artist:
    """Detects and draws with the options of the command."""

    def __init__(self, args: argparse.Namespace):
        """
        Args:
            args: of :func:`get_parser`.
        """
        self.min_score = args.confidence_threshold
        self.predictor = load_predictor(
            args.config_file,
            None,
            device=args.device,
            precision=args.precision,
            tta=args.tta,
            opts=args.opts,
        )

    def draw(self, image: np.ndarray) -> tuple[np.ndarray, int]:
        """
        Args:
            image: (h0, w0, 3) uint8 in BGR order.

        Returns:
            The image with its detections, and their number.
        """
        instances = self.predictor.detect(image, self.min_score)
        rgb = image[:, :, ::-1]
        drawn = draw_detections(rgb, instances, self.predictor.metadata, self.min_score)
        return np.ascontiguousarray(drawn[:, :, ::-1]), len(instances)


def draw_pictures(args: argparse.Namespace) -> int:
    """Draws the images of ``--input``. Unreadable images are reported at once and at the end.

    Args:
        args: of :func:`get_parser`.

    Returns:
        The exit status: 1 if an image could not be read.
    """
    paths = find_pictures(args.input, _lines_of_stdin())
    targets = output_paths(args.output, paths) if args.output else [None] * len(paths)
    artist = Artist(args)
    unreadable: dict[str, str] = {}
    bar = tqdm(
        paths, unit=" images", bar_format=BAR_FORMAT, dynamic_ncols=True, disable=not args.output
    )
    for path, target in zip(bar, targets):
        start = time.perf_counter()
        try:
            image = read_picture(path)
        except OSError as error:
            unreadable[path] = str(error)
            _say(f"error: {error}")
            continue
        drawn, count = artist.draw(image)
        seconds = time.perf_counter() - start
        where = f" -> {target}" if target else ""
        if target:
            write_picture(drawn, target)
        _say(f"{path}: detected {count} objects in {seconds:.2f}s{where}")
        if not target and _show(drawn, wait=0):
            break
    if unreadable:
        print(f"error: {len(unreadable)} of {len(paths)} images were not drawn:", file=sys.stderr)
        print(*(f"  {x}" for x in unreadable.values()), sep="\n", file=sys.stderr)
    return 1 if unreadable else 0


def draw_video(args: argparse.Namespace) -> int:
    """Draws the frames of ``--video-input`` or ``--webcam`` one at a time.

    Args:
        args: of :func:`get_parser`.

    Returns:
        The exit status, 0.
    """
    with Video(CAMERA if args.webcam else args.video_input) as video:
        if not args.output:
            artist = Artist(args)
            for frame in video:
                if _show(artist.draw(frame)[0], wait=1):
                    break
            return 0
        target, codec = find_output(args.output, args.video_input, video.rate, video.size)
        artist = Artist(args)
        bar = tqdm(
            video,
            total=video.num_frames,
            unit=" images",
            bar_format=BAR_FORMAT,
            dynamic_ncols=True,
        )
        num_frames = num_objects = 0
        with VideoFile(target, codec, video.rate, video.size) as file:
            for frame in bar:
                drawn, count = artist.draw(frame)
                file.write(drawn)
                num_frames += 1
                num_objects += count
        found = f"detected {num_objects} objects in {num_frames} frames"
        print(f"{args.video_input}: {found} -> {target}")
        if video.num_frames is not None and num_frames < video.num_frames:
            print(
                f"warning: {args.video_input}: {num_frames} of the {video.num_frames} frames in "
                "its header could be read",
                file=sys.stderr,
            )
    return 0


def _lines_of_stdin() -> Iterator[str]:
    # File names need not be valid in the encoding of the terminal.
    for line in sys.stdin.buffer:
        yield os.fsdecode(line)


def _say(line: str) -> None:
    """Prints above the progress bar."""
    tqdm.write(line, file=sys.stdout)


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


def _show(drawn: np.ndarray, wait: int) -> bool:
    """Shows an image in the window; returns whether Escape was pressed.

    Args:
        drawn: (h0, w0, 3) uint8 in BGR order.
        wait: milliseconds to wait for a key, 0 for no limit.
    """
    cv2.imshow(WINDOW_NAME, drawn)
    return cv2.waitKey(wait) == ESCAPE


def run(args: argparse.Namespace) -> int:
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
    check_arguments(args, parser)
    setup_logger(name="centripetalnet")
    # The encoding of the terminal may lack letters of file names.
    sys.stdout.reconfigure(errors="backslashreplace")
    return exit_status(run, args)
