"""Checks the entries of an annotation file."""

import os
import re
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any, Optional

from .reading import (
    class_names,
    entries_of,
    file_name_of,
    integer_of,
    is_file_name,
    is_integer,
    is_number,
    seen,
    shown,
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


def _is_side(value: Any) -> bool:
    # Pillow's limit.
    return is_integer(value) and 0 < value < 2**31


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


SIZE_FIELDS = {"height": _is_side, "width": _is_side}
IMAGE_FIELDS = {"id": is_integer, "file_name": is_file_name}
# Field of an annotation, its value if it is absent, whether it is valid, and the problem otherwise.
FIELDS = (
    ("id", None, is_integer, NO_IDS),
    ("image_id", None, is_integer, NO_IDS),
    ("category_id", None, is_integer, NO_IDS),
    ("ignore", 0, lambda x: x == 0, "ignore is not 0"),
    ("iscrowd", 0, lambda x: x == 0 or x == 1, "iscrowd is not 0 or 1"),
    ("area", None, lambda x: is_number(x) and x >= 0, "no valid area"),
    ("bbox", None, lambda x: _is_numbers(x) and len(x) == 4, "bbox is not four finite numbers"),
    ("keypoints", [], lambda x: not x or _is_numbers(x) and len(x) % 3 == 0, "invalid keypoints"),
)


def check_annotations(content: Any, path: str, needs_sizes: bool = True) -> Report:
    """Finds all entries of an annotation file that Detectron2 would fail on or silently ignore.

    Args:
        content: the parsed file ``path``, any JSON value.
        needs_sizes: whether images need ``height`` and ``width``. Detectron2 accepts both or none.

    Returns:
        All problems except those of the image files.

    Raises:
        ValueError: if it is not in COCO format, or an id or a name of a category is not unique, so
            that leaving out entries cannot fix it.
    """
    classes = class_names(content, path)
    images = entries_of(content, "images", path)
    annotations = entries_of(content, "annotations", path)
    problems = list(_check_images(images, needs_sizes))
    image_of_id: dict[int, dict] = {}
    for image in images:
        image_id = integer_of(image, "id")
        if image_id is not None:
            # Of different images with the same id no field is known.
            same = image_of_id.get(image_id, image) == image
            image_of_id[image_id] = image if same else {}
    first_of_id: dict[int, int] = {}
    for position, entry in enumerate(annotations):
        annotation_id, image_id = integer_of(entry, "id"), integer_of(entry, "image_id")
        image = image_of_id.get(image_id, {})
        found = list(_check_annotation(entry, image_of_id, image, classes))
        if annotation_id is not None and first_of_id.setdefault(annotation_id, position) < position:
            detail = f"annotations[{first_of_id[annotation_id]}] has the same id and is kept"
            found.append(("annotation id is not unique", detail))
        where = ("annotations", position, image_id, annotation_id, file_name_of(image))
        problems += [Problem(kind, *where, detail) for kind, detail in found]
    return Report(path, content, problems)


def _check_images(images: list[dict], needs_sizes: bool) -> Iterator[Problem]:
    """Checks entries of ``images``; of equal ones with the same id only the first is valid."""
    same_id = defaultdict(list)
    for position, image in enumerate(images):
        same_id[integer_of(image, "id")].append(position)
        has_size = needs_sizes or "height" in image or "width" in image
        fields = {**IMAGE_FIELDS, **SIZE_FIELDS} if has_size else IMAGE_FIELDS
        wrong = [seen(image, x) for x, is_valid in fields.items() if not is_valid(image.get(x))]
        if wrong:
            yield image_problem(image, position, NO_IMAGE_FIELDS, "; ".join(wrong))
        name = file_name_of(image) or ""
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
            yield image_problem(image, position, LEADS_OUTSIDE, seen(image, "file_name"))
    same_id.pop(None, None)
    for positions in same_id.values():
        first = images[positions[0]]
        detail = f"{len(positions)} images have it and differ, so their annotations are ambiguous"
        if all(images[x] == first for x in positions):
            detail = f"it is equal to images[{positions.pop(0)}], which is kept"
        for position in positions:
            yield image_problem(images[position], position, "image id is not unique", detail)


def _check_annotation(
    entry: dict, image_ids: Collection[int], image: dict, classes: dict[int, str]
) -> Iterator[KindAndDetail]:
    """Checks an annotation of ``image``, an empty dict if that is unknown."""
    wrong = set()
    for name, default, is_valid, kind in FIELDS:
        if not is_valid(entry.get(name, default)):
            wrong.add(name)
            yield kind, seen(entry, name)
    if "id" not in wrong and entry["id"] <= 0:
        yield "annotation id is not positive", seen(entry, "id")
    if "image_id" not in wrong and entry["image_id"] not in image_ids:
        yield "annotation of an unknown image", seen(entry, "image_id")
    if "category_id" not in wrong and entry["category_id"] not in classes:
        known = f"the {len(classes)} categories have ids from {min(classes)} to {max(classes)}"
        yield "annotation of an unknown category", f"{seen(entry, 'category_id')}; {known}"
    if "iscrowd" not in entry:
        yield "no iscrowd", seen(entry, "iscrowd")
    size = image.get("height"), image.get("width")
    if not all(map(_is_side, size)):
        size = None
    if "bbox" not in wrong:
        yield from _check_box(entry["bbox"], size)
    # Files with boxes only may have an empty one, which Detectron2 ignores.
    segmentation = entry.get("segmentation") or []
    if isinstance(segmentation, list):
        yield from _check_polygons(segmentation)
    elif isinstance(segmentation, dict):
        yield from _check_runs(segmentation, size)
    else:
        yield "segmentation of unknown format", seen(entry, "segmentation")


def _check_box(box: list, size: Size) -> Iterator[KindAndDetail]:
    x0, y0, width, height = map(float, box)
    x1, y1 = x0 + width, y0 + height
    kind, detail = None, ""
    if width < 0 or height < 0:
        kind = "box of negative size"
    elif x1 <= x0 or y1 <= y0:
        kind = "box without an area"
    elif size is not None:
        detail = f" in an image of {size[1]} x {size[0]}"
        beyond = max(-x0, -y0, x1 - size[1], y1 - size[0])
        if x0 >= size[1] or y0 >= size[0] or x1 <= 0 or y1 <= 0:
            kind = "box outside its image"
        elif beyond > OUTSIDE_TOLERANCE:
            kind = "box reaches outside its image"
            detail += f", by {beyond:.4g} pixels"
    if kind:
        yield kind, f"bbox is [{', '.join(f'{x:.8g}' for x in box)}]{detail}"


def _check_polygons(polygons: list) -> Iterator[KindAndDetail]:
    for polygon in polygons:
        if not _is_polygon(polygon):
            numbers = polygon if isinstance(polygon, list) else []
            wrong = [x for x in numbers if not is_number(x) or abs(x) > MAX_COORDINATE]
            expected = f"numbers of at most {MAX_COORDINATE:g}"
            yield "invalid polygon", f"one has {shown(wrong or polygon)}; expected {expected}"
            return
    dropped = [len(x) for x in polygons if len(x) % 2 or len(x) < 6]
    if dropped:
        kind = (
            "polygon dropped by Detectron2" if len(dropped) < len(polygons) else "invalid polygon"
        )
        count = f"{len(dropped)} of {len(polygons)} polygons"
        yield kind, f"{count} are not of 3 or more points, the first has {dropped[0]} numbers"


def _is_polygon(polygon: Any) -> bool:
    """Whether it is a list of numbers of at most MAX_COORDINATE."""
    try:
        # Faster than to ask each number for its type. A comparison with NaN is false.
        return isinstance(polygon, list) and all(
            abs(x) <= MAX_COORDINATE for x in array("d", polygon)
        )
    except (TypeError, OverflowError):
        return False


def _check_runs(code: dict, image_size: Size) -> Iterator[KindAndDetail]:
    """Checks a run-length encoding, a dict of ``size`` and ``counts``.

    pycocotools does not validate its input. If the runs do not add up to the mask's size, some of
    its versions write beyond their buffer and others return uninitialised pixels.
    """
    size, counts = code.get("size"), code.get("counts")
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))):
        yield BAD_RUN_LENGTHS, seen(code, "size")
    elif size[0] * size[1] > MAX_MASK_PIXELS:
        yield BAD_RUN_LENGTHS, f"its size is {size}, more than {MAX_MASK_PIXELS} pixels"
    elif image_size is not None and tuple(size) != image_size:
        yield BAD_RUN_LENGTHS, f"its size is {size}, that of the image {list(image_size)}"
    elif not (isinstance(runs, list) and all(is_integer(x) and x >= 0 for x in runs)):
        yield BAD_RUN_LENGTHS, f"{seen(code, 'counts')}, not integers from 0 or their code"
    elif sum(runs) != size[0] * size[1]:
        detail = f"its runs have {sum(runs)} pixels together, its size {size[0] * size[1]}"
        yield BAD_RUN_LENGTHS, detail


def decode_counts(code: str) -> Optional[list[int]]:
    """Decodes the run lengths in COCO's compressed ``counts``.

    A character has 6 bits, counted from "0": 5 bits of a number, the lowest first, and 0x20 if more
    follow. In the last character 0x10 is the sign. The first three numbers are lengths, each
    further one is the difference to the length two before it. Damaged ones may be negative.

    Returns:
        The lengths; None if it has other characters, ends within a number, or a number is too
        large.
    """
    if not COUNTS.fullmatch(code):
        return None
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
