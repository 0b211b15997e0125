"""Checks masks without pycocotools, which does not validate its input.

If the runs do not add up to the mask's size, some versions of pycocotools write beyond their buffer
and others return uninitialised pixels. A polygon takes memory proportional to its length.
"""

from array import array
from typing import Any, Optional

import numpy as np

from .structure import is_integer, is_number, shown

# pycocotools counts pixels in 32 bits and shifts by signed 32-bit integers.
MAX_MASK_PIXELS = 2**31 - 1
# pycocotools draws a polygon's outline pixel by pixel, also outside the image.
MAX_COORDINATE = 1e6
# Polygon coordinates that are checked together; limits the memory.
COORDINATES_AT_ONCE = 2**20

# The kind implies the severity.
KindAndDetail = tuple[str, str]

NO_FORM = "segmentation of unknown format"
BAD_POLYGON = "invalid polygon"
DROPPED_POLYGON = "polygon dropped by Detectron2"
BAD_CODE = "invalid run-length encoding"


class CoordinateCheck:
    """Checks the coordinates of many polygons together, which is faster than one by one."""

    def __init__(self) -> None:
        self._numbers = array("d")
        self._ends: list[int] = []
        self._owners: list[int] = []
        self._bad: list[tuple[int, str]] = []

    def add(self, owner: int, polygon: list) -> None:
        """Adds a polygon.

        Args:
            owner: position of its annotation.
            polygon: x, y, x, y, ...

        Raises:
            TypeError: if a value is not a number; nothing is added.
            OverflowError: if a value is too large for a float; nothing is added.
        """
        self._numbers.fromlist(polygon)
        self._ends.append(len(self._numbers))
        self._owners.append(owner)
        if len(self._numbers) > COORDINATES_AT_ONCE:
            self._check()

    def bad(self) -> list[tuple[int, str]]:
        """Owners of polygons with a coordinate that is not finite or too large, with details."""
        self._check()
        return self._bad

    def _check(self) -> None:
        numbers = np.array(self._numbers)
        # A comparison with NaN is false.
        wrong = np.flatnonzero(~(np.abs(numbers) <= MAX_COORDINATE))
        owners, where = np.unique(
            np.searchsorted(self._ends, wrong, side="right"), return_index=True
        )
        for polygon, first in zip(owners, wrong[where]):
            detail = f"a coordinate is {numbers[first]:g}; expected at most {MAX_COORDINATE:g}"
            self._bad.append((self._owners[polygon], detail))
        self._numbers, self._ends, self._owners = array("d"), [], []


def check_segmentation(
    segmentation: Any, size: Optional[tuple[int, int]], owner: int, coordinates: CoordinateCheck
) -> list[KindAndDetail]:
    """Checks an object's mask, except for the values of coordinates.

    Args:
        segmentation: a list of polygons, or run lengths as a dict of ``size`` and ``counts``.
        size: (height, width) of the image; None if unknown.
        owner: position of the annotation.
        coordinates: receives the polygons.

    Returns:
        Kinds of problems, with details.
    """
    if isinstance(segmentation, list):
        return _check_polygons(segmentation, owner, coordinates)
    if isinstance(segmentation, dict):
        return _check_code(segmentation, size)
    return [
        (
            NO_FORM,
            f"it is {shown(segmentation)}; expected a list of polygons or an object with 'size' "
            "and 'counts'",
        )
    ]


def _check_polygons(
    polygons: list, owner: int, coordinates: CoordinateCheck
) -> list[KindAndDetail]:
    dropped = []
    for polygon in polygons:
        if not isinstance(polygon, list):
            return [(BAD_POLYGON, f"one is {shown(polygon)}; expected a list of numbers")]
        try:
            coordinates.add(owner, polygon)
        except (TypeError, OverflowError):
            wrong = next((x for x in polygon if not is_number(x)), polygon)
            return [(BAD_POLYGON, f"a coordinate is {shown(wrong)}; expected a number")]
        if len(polygon) % 2 or len(polygon) < 6:
            dropped.append(len(polygon))
    if not dropped:
        return []
    numbers = f"{dropped[0]} numbers; expected an even number of at least 6. Detectron2 drops"
    if len(dropped) == len(polygons):
        return [(BAD_POLYGON, f"{numbers} the whole object without a warning")]
    kept = f"{len(polygons) - len(dropped)} of the {len(polygons)} polygons"
    return [(DROPPED_POLYGON, f"{numbers} it without a warning and keeps {kept}")]


def _check_code(code: dict, size: Optional[tuple[int, int]]) -> list[KindAndDetail]:
    try:
        _check_runs(code, size)
    except ValueError as error:
        return [(BAD_CODE, str(error))]
    return []


def _check_runs(code: dict, image_size: Optional[tuple[int, int]]) -> None:
    """Raises ValueError unless a run-length encoding is valid and has the image's size."""
    size, counts = code.get("size"), code.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(is_integer(x) for x in size)):
        raise ValueError(f"its size is {shown(size)}; expected [height, width]")
    if min(size) <= 0 or size[0] * size[1] > MAX_MASK_PIXELS:
        raise ValueError(f"its size is {shown(size)}; expected 1 to {MAX_MASK_PIXELS} pixels")
    if image_size is not None and tuple(size) != image_size:
        raise ValueError(f"its size is {size}; expected [height, width] {list(image_size)}")
    if isinstance(counts, str):
        runs = decode_counts(counts)
        lowest, total = int(runs.min(initial=0)), int(runs.sum())
    elif isinstance(counts, list) and all(map(is_integer, counts)):
        lowest, total = min(counts, default=0), sum(counts)
    else:
        raise ValueError(f"its counts are {shown(counts)}; expected integers or a string")
    if lowest < 0:
        raise ValueError(f"one of its runs has the length {lowest}; expected at least 0")
    if total != size[0] * size[1]:
        raise ValueError(
            f"its runs have {total} pixels together; expected {size[0] * size[1]}, height times "
            f"width of its size {size}"
        )


def decode_counts(code: str) -> np.ndarray:
    """Decodes the run lengths in COCO's compressed ``counts``.

    A character has 6 bits, counted from "0": 5 bits of a number, the lowest first, and 0x20 if more
    follow. In the last character 0x10 is the sign. The first three numbers are lengths, each
    further one is the difference to the length two before it.

    Args:
        code: the string.

    Returns:
        (R,) int64; lengths of damaged encodings may be negative.

    Raises:
        ValueError: if it has other characters, ends within a number, or a number is too large.
    """
    try:
        digits = np.frombuffer(code.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    except UnicodeEncodeError:
        digits = np.array([-1])
    if not digits.size:
        return digits
    if digits.min() < 0 or digits.max() > 0x3F:
        raise ValueError(f"its counts {shown(code)} have characters other than '0' to 'o'")
    ends = np.flatnonzero((digits & 0x20) == 0)
    if not ends.size or ends[-1] != digits.size - 1:
        raise ValueError(f"its counts {shown(code)} end within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    # 7 characters are enough for any difference of two lengths.
    if lengths.max() > 7:
        raise ValueError(f"its counts {shown(code)} have a number beyond 32 bits")
    places = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 0x1F) << (5 * places), starts)
    numbers -= np.where(digits[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
