"""Reading videos frame by frame, and writing them with the same size and frame rate."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Optional, Union

import cv2
import numpy as np

from .pictures import check_extension, is_file_name, refuse_to_overwrite

# Tried in this order for a video in a folder.
EXTENSIONS_IN_FOLDER = (".mp4", ".avi")
WRITTEN_EXTENSIONS = (*EXTENSIONS_IN_FOLDER, ".m4v", ".mkv", ".mov", ".webm")
# Tried in this order for a file.
CODECS = ("mp4v", "MJPG", "VP90")
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
            OSError: if there is no such file or camera, or it has no readable frame.
        """
        if isinstance(source, str) and not os.path.isfile(source):
            raise FileNotFoundError(f"there is no video {source} (relative to {os.getcwd()})")
        self._name = source if isinstance(source, str) else f"camera {source}"
        self._capture = cv2.VideoCapture(source)
        self._first = self._read()
        if self._first is None:
            self.close()
            raise OSError(
                f"{self._name} has no readable frame, expected a video in a format of this OpenCV "
                f"({cv2.__version__})"
            )
        height, width = self._first.shape[:2]
        self.size: tuple[int, int] = (width, height)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate: float = rate if math.isfinite(rate) and rate > 0 else DEFAULT_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames: Optional[int] = int(count) if math.isfinite(count) and count > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields each frame once, (height, width, 3) uint8 in BGR order."""
        frame, self._first = self._first, None
        while frame is not None:
            if frame.shape[1::-1] != self.size:
                raise OSError(
                    f"{self._name} has a frame of {_times(frame.shape[1::-1])} after frames of "
                    f"{_times(self.size)}, expected one size"
                )
            yield frame
            frame = self._read()

    def _read(self) -> Optional[np.ndarray]:
        done, frame = self._capture.read()
        return frame if done else None

    def close(self) -> None:
        self._capture.release()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoFile:
    """Writes a video file atomically.

    Codecs need even widths and heights. Odd frames get their last column or row twice.
    """

    def __init__(self, path: str, codec: str, rate: float, size: tuple[int, int]):
        """
        Args:
            path: of the complete file. Missing folders are created.
            codec: four letters, see :func:`find_output`.
            rate: frames per second.
            size: (width, height) of the frames, in pixels.

        Raises:
            OSError: if it cannot be written.
        """
        os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
        self._path, self._size, self._written = path, size, 0
        stem, extension = os.path.splitext(path)
        self._unfinished = f"{stem}.unfinished{extension}"
        self._writer = _writer(self._unfinished, codec, rate, size)
        if not self._writer.isOpened():
            raise OSError(f"{path} cannot be written: OpenCV could not open {self._unfinished}")

    def write(self, frame: np.ndarray) -> None:
        """
        Args:
            frame: (height, width, 3) uint8 in BGR order.
        """
        # OpenCV ignores frames of another size without an error.
        if frame.shape[1::-1] != self._size:
            raise ValueError(
                f"{self._path}: expected a frame of {_times(self._size)}, got one of "
                f"{_times(frame.shape[1::-1])}"
            )
        self._writer.write(_even(frame))
        self._written += 1

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._writer.release()
        try:
            if kind is None:
                self._check()
                os.replace(self._unfinished, self._path)
        finally:
            with suppress(FileNotFoundError):
                os.remove(self._unfinished)

    def _check(self) -> None:
        """Counts the frames in the file, since OpenCV reports no write errors."""
        capture = cv2.VideoCapture(self._unfinished)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if count != self._written:
            raise OSError(
                f"{self._path}: {self._written} frames were written, but the file has {count}. "
                "Check whether the disk is full."
            )


def find_output(output: str, source: str, rate: float, size: tuple[int, int]) -> tuple[str, str]:
    """Path and codec of a drawn video. The input is never overwritten.

    Args:
        output: a file, or a folder, which need not exist.
        source: path of the input video.
        rate: frames per second.
        size: (width, height) of the frames, in pixels.

    Returns:
        Path and codec. In a folder the file has the name of ``source``, with .mp4 or, if OpenCV
        cannot write that, .avi.

    Raises:
        ValueError: if ``source`` would be overwritten, or OpenCV cannot write such a video.
    """
    if is_file_name(output):
        check_extension(output, WRITTEN_EXTENSIONS)
        paths = [output]
    else:
        stem = os.path.splitext(os.path.basename(source))[0]
        paths = [os.path.join(output, stem + extension) for extension in EXTENSIONS_IN_FOLDER]
    for path in paths:
        codec = find_codec(os.path.splitext(path)[1], rate, size)
        if codec is not None:
            refuse_to_overwrite(output, [path], [source])
            return path, codec
    raise ValueError(
        f"--output {output}: this OpenCV ({cv2.__version__}) writes no video of {_times(size)} at "
        f"{rate:g} frames per second as {' or '.join(os.path.basename(x) for x in paths)}. Try "
        f"another of {', '.join(WRITTEN_EXTENSIONS)}, or install OpenCV with FFmpeg."
    )


def find_codec(extension: str, rate: float, size: tuple[int, int]) -> Optional[str]:
    """The first of ``CODECS`` with which a test frame can be written and read, or None.

    Args:
        extension: of the file, such as ".mp4".
        rate: frames per second.
        size: (width, height) of the frames, in pixels.
    """
    return next((x for x in CODECS if _works(x, extension, rate, size)), None)


def _works(codec: str, extension: str, rate: float, size: tuple[int, int]) -> bool:
    black = _even(np.zeros((size[1], size[0], 3), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"probe{extension}")
        writer = _writer(path, codec, rate, size)
        writer.write(black)
        writer.release()
        capture = cv2.VideoCapture(path)
        done, frame = capture.read()
        capture.release()
    return bool(done) and frame.shape == black.shape


def _writer(path: str, codec: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    width, height = size
    even = (width + width % 2, height + height % 2)
    return cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*codec), rate, even)


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
