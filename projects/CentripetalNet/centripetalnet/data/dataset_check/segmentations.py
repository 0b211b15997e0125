"""Checks of masks, none of which hands anything to pycocotools.

pycocotools trusts what it is given: where the runs of a code do not add up to the mask's size, some
versions write beyond their buffer and others give pixels that were never set, and a polygon takes
memory in proportion to its length.
"""

from array import array
from typing import Any, List, Optional, Tuple

import numpy as np

from .structure import is_integer, is_number, shown

# pycocotools counts pixels in 32 bits, and shifts by signed integers of 32 bits.
MAX_MASK_PIXELS = 2**31 - 1
# A polygon's outline is drawn pixel by pixel, wherever it is.
MAX_COORDINATE = 1e6
# Numbers of polygons that are looked at together; bounds the memory.
COORDINATES_AT_ONCE = 2**20

# Severity is not part of it, as the kind says that.
KindAndDetail = Tuple[str, str]

NO_FORM = "segmentation is of no known form"
BAD_POLYGON = "polygon cannot be used"
DROPPED_POLYGON = "polygon is left out"
BAD_CODE = "run-length code cannot be used"


class CoordinateCheck:
    """Looks at the numbers of many polygons together, as there are too many to do it singly."""

    def __init__(self) -> None:
        self._numbers = array("d")
        self._ends: List[int] = []
        self._owners: List[int] = []
        self._bad: List[Tuple[int, str]] = []

    def add(self, owner: int, polygon: list) -> None:
        """Takes a polygon.

        Args:
            owner: position of its annotation.
            polygon: x, y, x, y, ...

        Raises:
            TypeError: if one of its values is no number; then nothing is taken.
            OverflowError: if one is too large to be a float; likewise.
        """
        self._numbers.fromlist(polygon)
        self._ends.append(len(self._numbers))
        self._owners.append(owner)
        if len(self._numbers) > COORDINATES_AT_ONCE:
            self._look()

    def bad(self) -> List[Tuple[int, str]]:
        """Owners of polygons with a number that is not finite or too large, and what it is."""
        self._look()
        return self._bad

    def _look(self) -> None:
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
    segmentation: Any, size: Optional[Tuple[int, int]], owner: int, coordinates: CoordinateCheck
) -> List[KindAndDetail]:
    """What is wrong with an object's mask, but for the coordinates' values.

    Args:
        segmentation: a list of polygons, or a run-length code as a dict of ``size`` and ``counts``.
        size: (height, width) of the image; None if that is not known.
        owner: position of the annotation.
        coordinates: takes the polygons.

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
) -> List[KindAndDetail]:
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
        return [(BAD_POLYGON, f"{numbers} the whole object without a word")]
    kept = f"{len(polygons) - len(dropped)} of the {len(polygons)} polygons"
    return [(DROPPED_POLYGON, f"{numbers} it without a word and keeps {kept}")]


def _check_code(code: dict, size: Optional[Tuple[int, int]]) -> List[KindAndDetail]:
    try:
        _check_runs(code, size)
    except ValueError as error:
        return [(BAD_CODE, str(error))]
    return []


def _check_runs(code: dict, image_size: Optional[Tuple[int, int]]) -> None:
    """Raises ValueError if a run-length code is not one of a mask of the image's size."""
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
        raise ValueError(f"its counts are {shown(counts)}; expected integers or their code")
    if lowest < 0:
        raise ValueError(f"one of its runs has the length {lowest}; expected no less than 0")
    if total != size[0] * size[1]:
        raise ValueError(
            f"its runs are of {total} pixels together; expected {size[0] * size[1]}, as height "
            f"times width of its size {size}"
        )


def decode_counts(code: str) -> np.ndarray:
    """Lengths of the runs in COCO's compressed code.

    A character stands for 6 bits, counted from "0": the lower 5 are digits of a number, the lowest
    first, and 0x20 says that more follow. In the last one 0x10 is the sign. The first three numbers
    are lengths, each further one the difference to the length two before it.

    Args:
        code: text, as in ``counts``.

    Returns:
        (R,) int64; of damaged code also negative ones.

    Raises:
        ValueError: if the text has other characters, ends within a number, or one is too large.
    """
    try:
        digits = np.frombuffer(code.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    except UnicodeEncodeError:
        digits = np.array([-1])
    if not digits.size:
        return digits
    if digits.min() < 0 or digits.max() > 0x3F:
        raise ValueError(f"its code {shown(code)} has characters other than '0' to 'o'")
    ends = np.flatnonzero((digits & 0x20) == 0)
    if not ends.size or ends[-1] != digits.size - 1:
        raise ValueError(f"its code {shown(code)} ends within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    # 7 characters hold any difference of two numbers of pixels.
    if lengths.max() > 7:
        raise ValueError(f"its code {shown(code)} has a number beyond 32 bits")
    places = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 0x1F) << (5 * places), starts)
    numbers -= np.where(digits[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
