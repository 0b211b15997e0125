"""The report about a dataset, and the dataset without invalid entries."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

from tabulate import tabulate

from .reading import class_names, file_name_of, integer_of, shown

# Kinds that several modules find.
NO_IMAGE_FIELDS = "image without a valid id, file_name, height or width"
NO_IDS = "annotation without a valid id, image_id or category_id"
LEADS_OUTSIDE = "file name leads outside the image folder"
BAD_RUN_LENGTHS = "invalid run-length encoding"

# What is expected instead of each kind of problem. An entry with an error is invalid.
ERRORS = {
    # entries of "images"
    NO_IMAGE_FIELDS: "id: an integer; file_name: text; height, width: positive integers",
    "image id is not unique": "an id of its own for each image",
    "image file is missing": "the file at this path; correct file_name or the image folder",
    "image file is truncated": "the whole file; copy it again",
    "image file cannot be read": "an image in a format of Pillow, such as JPEG or PNG",
    "image size differs from the annotation file": "that of the file; also check the boxes",
    # entries of "annotations"
    NO_IDS: "three integers of at most 64 bits",
    "annotation id is not unique": "an id of its own for each annotation",
    "annotation of an unknown image": "image_id: the id of one of the file's images",
    "annotation of an unknown category": "category_id: the id of one of the categories",
    "bbox_mode is not XYXY_ABS or XYWH_ABS": "one of these two of structures.BoxMode",
    "bbox is not four finite numbers": "[x, y, width, height] in pixels",
    "box of negative size": "positive width and height, not the second corner",
    "box outside its image": "pixels of the image, from its upper left corner",
    "ignore is not 0": "0 or no ignore; at others Detectron2 raises an error",
    "iscrowd is not 0 or 1": "1 for a crowd, 0 for an object",
    "segmentation of unknown format": "a list of polygons, or an object with size and counts",
    "invalid polygon": "[x, y, x, y, ...] of 3 points or more; Detectron2 drops the object",
    BAD_RUN_LENGTHS: "size: [height, width] of the image; counts: that many pixels together",
    "invalid keypoints": "[x, y, visibility, ...]",
}
# An entry with a note is used as Detectron2 converts it.
NOTES = {
    # entries of "images"
    LEADS_OUTSIDE: "a path relative to the image folder",
    "rotated by EXIF": "boxes of the rotated image",
    "more than 8 bits per channel": "8 bits; the upper ones are used, or values clipped to 255",
    "CMYK": "RGB; it is converted without a colour profile",
    "palette": "RGB; it is converted to the palette's colours",
    "alpha channel": "no alpha; the colour of transparent pixels becomes visible",
    "several frames": "one image; the first is used",
    "Pillow warning": "an image that Pillow reads without one; save it again",
    # entries of "annotations". COCO 2017 itself has some, which Detectron2 ignores.
    "box without an area": "positive width and height; it gives no training target",
    "box reaches outside its image": "a box inside; it is clipped",
    "polygon dropped by Detectron2": "an even number of at least 6 numbers; the others are kept",
    "annotation id is not positive": "ids from 1; COCO's evaluation takes 0 for no match",
    "no iscrowd": "0 or 1; training takes it for 0, COCO's evaluation fails",
    "no valid area": "a number of pixels; only COCO's evaluation needs it",
}
EXPECTED = {**ERRORS, **NOTES}

MOST_CHARACTERS = 200

KindAndDetail = tuple[str, str]


class Problem(NamedTuple):
    """A problem of one entry of an annotation file.

    Attributes:
        kind: one of ``EXPECTED``, which also says how to mend it.
        section: the list with the entry, ``images`` or ``annotations``.
        position: the entry's index in the list.
        image_id: of the image or of the annotation's image, if it is an integer; in a record of a
            function also a string.
        annotation_id: None for an image, or if it is not an integer.
        file_name: of the image, if known.
        detail: what was found.
    """

    kind: str
    section: str
    position: int
    image_id: Union[int, str, None]
    annotation_id: Optional[int]
    file_name: Optional[str]
    detail: str

    @property
    def severity(self) -> str:
        """``error``: the entry is invalid. ``note``: it is used as Detectron2 converts it."""
        return "error" if self.kind in ERRORS else "note"


def image_problem(image: dict, position: int, kind: str, detail: str) -> Problem:
    """A problem of an entry of ``images``."""
    where = ("images", position, integer_of(image, "id"), None, file_name_of(image))
    return Problem(kind, *where, detail)


@dataclass
class Report:
    """Problems of one annotation file and its images.

    Attributes:
        path: of the annotation file.
        content: of the file, in COCO format but for its problems.
        problems: in the order in which they were found.
    """

    path: str
    content: dict
    problems: list[Problem]

    @property
    def invalid(self) -> set[tuple[str, int]]:
        """Section and position of the entries with errors."""
        return {(x.section, x.position) for x in self.problems if x.severity == "error"}

    def format(self) -> str:
        """The numbers of images and annotations, and a row for each kind of problem."""
        groups = defaultdict(list)
        for problem in self.problems:
            groups[problem.kind].append(problem)
        rows = [
            (found[0].severity, kind, len(found), expected, _example(found[0]))
            for kind, expected in EXPECTED.items()
            if (found := groups[kind])
        ]
        sizes = [f"{len(self.content.get(x, []))} {x}" for x in ("images", "annotations")]
        text = f"{_line(self.path)}: {', '.join(sizes)}, {len(self.invalid)} invalid entries"
        headers = ("severity", "kind", "number", "expected", "first example")
        return f"{text}\n\n{tabulate(rows, headers, disable_numparse=True)}" if rows else text

    def format_classes(self) -> str:
        """A table of the numbers of objects and crowds of each class, the most frequent first."""
        counts = Counter(
            (integer_of(x, "category_id"), x.get("iscrowd") == 1)
            for x in self.content.get("annotations", [])
        )
        names = class_names(self.content, self.path)
        rows = [(_line(name), counts[i, False], counts[i, True]) for i, name in names.items()]
        rows.sort(key=lambda x: -(x[1] + x[2]))
        # A class may have a name such as "1e5".
        return tabulate(rows, ("class", "objects", "crowds"), disable_numparse=True)

    def without_errors(self) -> dict:
        """The content without invalid entries and without annotations of invalid images."""
        invalid = self.invalid
        valid = {
            section: [x for i, x in enumerate(self.content[section]) if (section, i) not in invalid]
            for section in ("images", "annotations")
            if section in self.content
        }
        if "annotations" in valid:
            ids = {x["id"] for x in valid["images"]}
            valid["annotations"] = [x for x in valid["annotations"] if x["image_id"] in ids]
        return {**self.content, **valid}


def _example(problem: Problem) -> str:
    names = {
        "image": problem.image_id,
        "file": None if problem.file_name is None else shown(problem.file_name),
        "annotation": problem.annotation_id,
    }
    place = " ".join(f"{name} {x}" for name, x in names.items() if x is not None)
    return _line(f"{place or f'{problem.section}[{problem.position}]'}: {problem.detail}")


def _line(text: str) -> str:
    """Cuts the text, and escapes line breaks, control characters and lone surrogates."""
    line = "".join(x if x.isprintable() else repr(x)[1:-1] for x in text[: MOST_CHARACTERS + 1])
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 3] + "..."
