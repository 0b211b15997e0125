"""Reading videos frame by frame, and writing them with the same size and frame rate."""

import os
from collections.abc import Iterable, Iterator
from typing import Optional, Union

import cv2
import numpy as np

from .files import atomic_path

# By extension; the first is that of drawn videos in a folder.
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
# Frames per second of a video without a valid rate.
DEFAULT_RATE = 30.0


class Video:
    """Iterates over the frames of a video file or camera, with one frame in memory at a time.

    Attributes:
        size: (width, height) of every frame, in pixels.
        rate: frames per second.
        num_frames: as in the header of the file, in some formats an estimate; None if unknown.
    """

    def __init__(self, source: Union[str, int]):
        """
        Args:
            source: path of a file, or number of a camera.

        Raises:
            OSError: if it has no readable frame.
        """
        self._name = source if isinstance(source, str) else f"camera {source}"
        self._capture = cv2.VideoCapture(source)
        done, self._first = self._capture.read()
        if not done:
            raise OSError(
                f"{self._name} has no readable frame, expected a video in a format of this OpenCV "
                f"({cv2.__version__})"
            )
        self.size: tuple[int, int] = self._first.shape[1::-1]
        # Unknown values are 0, negative or NaN.
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate: float = rate if 0 < rate < float("inf") else DEFAULT_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames: Optional[int] = int(count) if 0 < count < float("inf") else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields each frame once, (height, width, 3) uint8 in BGR order."""
        done, frame = True, self._first
        while done:
            if frame.shape[1::-1] != self.size:
                raise OSError(f"{self._name} has frames of {self.size} and {frame.shape[1::-1]}")
            yield frame
            done, frame = self._capture.read()


def write_video(path: str, frames: Iterable[np.ndarray], rate: float, size: tuple[int, int]) -> int:
    """Writes a video atomically; creates missing folders.

    Codecs need even widths and heights. Odd frames get their last column or row twice.

    Args:
        path: with an extension of ``CODECS``.
        frames: (height, width, 3) uint8 in BGR order each.
        rate: frames per second.
        size: (width, height) of the frames, in pixels.

    Returns:
        The number of frames.

    Raises:
        OSError: if it cannot be written.
    """
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    extension = os.path.splitext(path)[1]
    right, bottom = (x % 2 for x in size)
    written = 0
    with atomic_path(path, ending=extension) as unfinished:
        codec = cv2.VideoWriter_fourcc(*CODECS[extension.lower()])
        even = (size[0] + right, size[1] + bottom)
        writer = cv2.VideoWriter(unfinished, codec, rate, even)
        try:
            for frame in frames:
                writer.write(cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE))
                written += 1
        finally:
            writer.release()
        # OpenCV reports no errors, and OpenCV 5 counts -1 frames in what is no video.
        found = max(0, int(cv2.VideoCapture(unfinished).get(cv2.CAP_PROP_FRAME_COUNT)))
        if found != written:
            raise OSError(
                f"{path}: {written} frames were written, but the file has {found}. Check whether "
                f"the disk is full, and whether this OpenCV ({cv2.__version__}) writes such files."
            )
    return written
