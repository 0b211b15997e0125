"""Checks the entries of an annotation file."""

import os
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Optional

from .reading import (
    class_names,
    entries_of,
    file_name_of,
    integer_or_none,
    is_integer,
    is_number,
    shown,
    wrong_field,
)
from .report import (
    BAD_RUN_LENGTHS,
    LEADS_OUTSIDE,
    NO_IDS,
    NO_IMAGE_FIELDS,
    KindAndDetail,
    Problem,
    Report,
    image_problem,
)

# Pixels. COCO rounds x and width to hundredths each, and their sum is not exact.
OUTSIDE_TOLERANCE = 0.02
# pycocotools counts pixels in 32 bits and shifts by signed 32-bit integers.
MAX_MASK_PIXELS = 2**31 - 1
# pycocotools draws a polygon's outline pixel by pixel, also outside the image.
MAX_COORDINATE = 1e6
# Compressed run lengths, see decode_counts. 7 characters are enough for 32 bits.
COUNTS = re.compile("(?:[P-o]{0,6}[0-O])+")

# (height, width) in pixels; None if unknown or ambiguous.
Size = Optional[tuple[int, int]]


def check_annotations(content: Any, path: str) -> Report:
    """Finds all entries of an annotation file that Detectron2 would fail on or silently ignore.

    Args:
        content: the parsed file ``path``, any JSON value.

    Returns:
        All problems except those of the image files, and the number of objects of each class.

    Raises:
        ValueError: if it is not in COCO format, or an id or a name of a category is not unique, so
            that leaving out entries cannot fix it.
    """
    classes = class_names(content, path)
    images = entries_of(content, "images", path)
    annotations = entries_of(content, "annotations", path)
    problems = check_image_entries(images)
    sizes: dict[int, Size] = {}
    names = {}
    for image in images:
        image_id = integer_or_none(image.get("id"))
        if image_id is not None:
            names[image_id], size = file_name_of(image), size_of(image)
            sizes[image_id] = size if sizes.get(image_id, size) == size else None
    first_of_id: dict[int, int] = {}
    for position, entry in enumerate(annotations):
        annotation_id, image_id = (integer_or_none(entry.get(x)) for x in ("id", "image_id"))
        where = ("annotations", position, image_id, annotation_id, names.get(image_id))
        found = [*_check_ids(entry, sizes), *check_values(entry, sizes.get(image_id), classes)]
        if annotation_id is not None and first_of_id.setdefault(annotation_id, position) < position:
            detail = f"annotations[{first_of_id[annotation_id]}] has the same id and is kept"
            found.append(("annotation id is not unique", detail))
        problems += [Problem(kind, *where, detail) for kind, detail in found]
    counts = class_counts(annotations, classes)
    return Report(path, problems, len(images), len(annotations), counts)


def class_counts(
    annotations: Iterable[dict], classes: dict[int, str]
) -> dict[str, tuple[int, int]]:
    """Numbers of objects and of crowds by class name; ``classes`` are names by category id."""
    counts = Counter(
        (integer_or_none(x.get("category_id")), x.get("iscrowd") == 1) for x in annotations
    )
    return {name: (counts[i, False], counts[i, True]) for i, name in classes.items()}


def size_of(image: dict) -> Size:
    """That of an entry of ``images``, if it is valid."""
    size = image.get("height"), image.get("width")
    return size if all(map(_is_side, size)) else None


def _is_side(value: Any) -> bool:
    # Pillow's limit.
    return is_integer(value) and 0 < value < 2**31


def check_image_entries(images: list[dict], needs_sizes: bool = True) -> list[Problem]:
    """Checks entries of ``images``; of equal ones with the same id only the first is valid."""
    problems = []
    same_id = defaultdict(list)
    for position, image in enumerate(images):
        name = file_name_of(image)
        wrong = []
        if is_integer(image.get("id")):
            same_id[image["id"]].append(position)
        else:
            wrong.append(wrong_field(image, "id", "an integer"))
        if name is None:
            wrong.append(wrong_field(image, "file_name", "a string"))
        # Detectron2 accepts both or neither.
        if needs_sizes or "height" in image or "width" in image:
            sides = [x for x in ("height", "width") if not _is_side(image.get(x))]
            wrong += [wrong_field(image, x, "a positive integer") for x in sides]
        if wrong:
            problems.append(image_problem(image, position, NO_IMAGE_FIELDS, "; ".join(wrong)))
        if name and (os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir):
            detail = "expected a path relative to the image folder"
            problems.append(image_problem(image, position, LEADS_OUTSIDE, detail))
    for positions in same_id.values():
        first = positions[0]
        detail = f"{len(positions)} images have the id, the first is images[{first}]; they "
        if all(images[x] == images[first] for x in positions):
            positions = positions[1:]
            detail += "are equal, the first is kept"
        else:
            detail += "differ, so their annotations are ambiguous"
        problems += [
            image_problem(images[x], x, "image id is not unique", detail) for x in positions
        ]
    return problems


def _check_ids(entry: dict, sizes: dict[int, Size]) -> Iterator[KindAndDetail]:
    annotation_id, image_id = entry.get("id"), entry.get("image_id")
    if not is_integer(annotation_id):
        yield NO_IDS, wrong_field(entry, "id", "an integer")
    elif annotation_id <= 0:
        detail = "COCO's evaluation needs ids from 1; it counts a match with object 0 as false"
        yield "annotation id is not positive", detail
    if not is_integer(image_id):
        yield NO_IDS, wrong_field(entry, "image_id", "an integer")
    elif image_id not in sizes:
        yield "annotation of an unknown image", "expected the id of one of the file's images"


def check_values(entry: dict, size: Size, classes: dict[int, str]) -> Iterator[KindAndDetail]:
    """Checks everything but the ids of an annotation; ``size`` is that of its image."""
    category_id = entry.get("category_id")
    if not is_integer(category_id):
        yield NO_IDS, wrong_field(entry, "category_id", "an integer")
    elif category_id not in classes:
        known = f"{len(classes)} category ids, {min(classes)} to {max(classes)}"
        detail = f"category_id is {category_id}; expected one of the {known}"
        yield "annotation of an unknown category", detail
    ignore, iscrowd, area = entry.get("ignore", 0), entry.get("iscrowd"), entry.get("area")
    if ignore != 0:
        detail = f"it is {shown(ignore)}; Detectron2 raises an error unless it is 0"
        yield "ignore is not 0", detail
    if "iscrowd" not in entry:
        detail = "training uses it as an object, COCO's evaluation fails without it; add 0 or 1"
        yield "no iscrowd", detail
    elif not (iscrowd == 0 or iscrowd == 1):
        yield "iscrowd is not 0 or 1", wrong_field(entry, "iscrowd", "0 or 1")
    if not (is_number(area) and area >= 0):
        detail = wrong_field(entry, "area", "a number of pixels")
        yield "no valid area", f"{detail}. COCO's evaluation needs it, training does not"
    box = entry.get("bbox")
    if _is_numbers(box) and len(box) == 4:
        yield from _check_box(box, size)
    else:
        detail = wrong_field(entry, "bbox", "[x, y, width, height]")
        yield "bbox is not four finite numbers", detail
    # Files with boxes only may have an empty one, which Detectron2 ignores.
    if entry.get("segmentation"):
        yield from _check_segmentation(entry["segmentation"], size)
    keypoints = entry.get("keypoints") or []
    if not (_is_numbers(keypoints) and len(keypoints) % 3 == 0):
        detail = f"they are {shown(keypoints)}; expected a list of x, y, visibility, ..."
        yield "invalid keypoints", detail


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _check_box(box: list, size: Size) -> Iterator[KindAndDetail]:
    x0, y0, width, height = map(float, box)
    x1, y1 = x0 + width, y0 + height
    kind = None
    if width < 0 or height < 0:
        kind, detail = "box of negative size", "; width and height must be positive"
    elif x1 <= x0 or y1 <= y0:
        kind, detail = "box without an area", "; it gives no training target"
    elif size is not None:
        detail = f" in an image of {size[1]} x {size[0]}"
        beyond = max(-x0, -y0, x1 - size[1], y1 - size[0])
        if x0 >= size[1] or y0 >= size[0] or x1 <= 0 or y1 <= 0:
            kind = "box outside its image"
        elif beyond > OUTSIDE_TOLERANCE:
            kind = "box reaches outside its image"
            detail += f"; {beyond:.4g} pixels are clipped"
    if kind:
        yield kind, f"bbox is [{', '.join(f'{x:.8g}' for x in box)}]{detail}"


def _check_segmentation(segmentation: Any, size: Size) -> Iterator[KindAndDetail]:
    """Checks a mask: a list of polygons, or run lengths as a dict of ``size`` and ``counts``.

    pycocotools does not validate its input. If the runs do not add up to the mask's size, some of
    its versions write beyond their buffer and others return uninitialised pixels. A polygon takes
    memory proportional to its length.
    """
    if isinstance(segmentation, list):
        yield from _check_polygons(segmentation)
    elif isinstance(segmentation, dict):
        try:
            _check_runs(segmentation, size)
        except ValueError as error:
            yield BAD_RUN_LENGTHS, str(error)
    else:
        expected = "a list of polygons or an object with 'size' and 'counts'"
        detail = f"it is {shown(segmentation)}; expected {expected}"
        yield "segmentation of unknown format", detail


def _check_polygons(polygons: list) -> Iterator[KindAndDetail]:
    for polygon in polygons:
        wrong = _wrong_coordinates(polygon)
        if wrong:
            yield "invalid polygon", wrong
            return
    dropped = [len(x) for x in polygons if len(x) % 2 or len(x) < 6]
    if dropped:
        detail = f"{dropped[0]} numbers; expected an even number of at least 6. Detectron2 drops"
        if len(dropped) == len(polygons):
            yield "invalid polygon", f"{detail} the whole object without a warning"
        else:
            kept = f"{len(polygons) - len(dropped)} of the {len(polygons)} polygons"
            detail += f" it without a warning and keeps {kept}"
            yield "polygon dropped by Detectron2", detail


def _wrong_coordinates(polygon: Any) -> Optional[str]:
    """What is wrong with the values of a polygon, if anything."""
    if not isinstance(polygon, list):
        return f"one is {shown(polygon)}; expected a list of numbers"
    try:
        numbers = array("d", polygon)
    except (TypeError, OverflowError):
        wrong = next((x for x in polygon if not is_number(x)), polygon)
        return f"a coordinate is {shown(wrong)}; expected a number"
    for x in numbers:
        # A comparison with NaN is false.
        if not abs(x) <= MAX_COORDINATE:
            return f"a coordinate is {x:g}; expected at most {MAX_COORDINATE:g}"
    return None


def _check_runs(code: dict, image_size: Size) -> None:
    """Raises ValueError unless a run-length encoding is valid and has the image's size."""
    size, counts = code.get("size"), code.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(map(is_integer, size))):
        raise ValueError(f"its size is {shown(size)}; expected [height, width]")
    if min(size) <= 0 or size[0] * size[1] > MAX_MASK_PIXELS:
        raise ValueError(f"its size is {shown(size)}; expected 1 to {MAX_MASK_PIXELS} pixels")
    if image_size is not None and tuple(size) != image_size:
        raise ValueError(f"its size is {size}; expected [height, width] {list(image_size)}")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not (isinstance(counts, list) and all(map(is_integer, counts))):
        raise ValueError(f"its counts are {shown(counts)}; expected integers or a string")
    if min(counts, default=0) < 0:
        raise ValueError(f"one of its runs has the length {min(counts)}; expected at least 0")
    expected = size[0] * size[1]
    if sum(counts) != expected:
        detail = f"expected {expected}, height times width of its size {size}"
        raise ValueError(f"its runs have {sum(counts)} pixels together; {detail}")


def decode_counts(code: str) -> list[int]:
    """Decodes the run lengths in COCO's compressed ``counts``.

    A character has 6 bits, counted from "0": 5 bits of a number, the lowest first, and 0x20 if more
    follow. In the last character 0x10 is the sign. The first three numbers are lengths, each
    further one is the difference to the length two before it. Damaged ones may be negative.

    Raises:
        ValueError: if it has other characters, ends within a number, or a number is too large.
    """
    if not COUNTS.fullmatch(code):
        raise ValueError(
            f"its counts are {shown(code)}; expected numbers of at most 7 characters, 'P' to 'o' "
            "and last one from '0' to 'O'"
        )
    lengths: list[int] = []
    number = bits = 0
    for character in code.encode("ascii"):
        digit = character - ord("0")
        number |= (digit & 0x1F) << bits
        bits += 5
        if digit < 0x20:
            if digit & 0x10:
                number -= 1 << bits
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = bits = 0
    return lengths
