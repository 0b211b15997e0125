"""The report about a dataset, and the dataset without invalid entries."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

from tabulate import tabulate

from .reading import file_name_of, integer_or_none, shown

# Kinds that several modules find.
NO_IMAGE_FIELDS = "image without a valid id, file_name, height or width"
NO_IDS = "annotation without a valid id, image_id or category_id"
LEADS_OUTSIDE = "file name leads outside the image folder"
BAD_RUN_LENGTHS = "invalid run-length encoding"

# All kinds of problems. An entry with an error is invalid.
ERRORS = (
    # entries of "images"
    NO_IMAGE_FIELDS,
    "image id is not unique",
    "image file is missing",
    "image file is truncated",
    "image file cannot be read",
    "image size differs from the annotation file",
    # entries of "annotations"
    NO_IDS,
    "annotation id is not unique",
    "annotation of an unknown image",
    "annotation of an unknown category",
    "bbox_mode is not XYXY_ABS or XYWH_ABS",
    "bbox is not four finite numbers",
    "box of negative size",
    "box outside its image",
    "ignore is not 0",
    "iscrowd is not 0 or 1",
    "segmentation of unknown format",
    "invalid polygon",
    BAD_RUN_LENGTHS,
    "invalid keypoints",
)
# An entry with a note is used as Detectron2 converts it.
NOTES = (
    # entries of "images"
    LEADS_OUTSIDE,
    "rotated by EXIF",
    "more than 8 bits per channel",
    "CMYK",
    "palette",
    "alpha channel",
    "several frames",
    "Pillow warning",
    # entries of "annotations". COCO 2017 itself has some, which Detectron2 ignores.
    "box without an area",
    "box reaches outside its image",
    "polygon dropped by Detectron2",
    "annotation id is not positive",
    "no iscrowd",
    "no valid area",
)
SEVERITIES = {**dict.fromkeys(ERRORS, "error"), **dict.fromkeys(NOTES, "note")}

# Most characters of an example, and most rows of the table of classes.
EXAMPLE_CHARACTERS = 120
MOST_CLASSES = 100

KindAndDetail = tuple[str, str]


class Problem(NamedTuple):
    """A problem of one entry of an annotation file.

    Attributes:
        kind: one of ``SEVERITIES``.
        section: the list with the entry, ``images`` or ``annotations``.
        position: the entry's index in the list.
        image_id: of the image or of the annotation's image, if it is an integer; in a record of a
            function also a string.
        annotation_id: None for an image, or if it is not an integer.
        file_name: of the image, if known.
        detail: the value found and the value expected.
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
        return SEVERITIES[self.kind]


def image_problem(image: dict, position: int, kind: str, detail: str) -> Problem:
    """A problem of an entry of ``images``."""
    image_id = integer_or_none(image.get("id"))
    return Problem(kind, "images", position, image_id, None, file_name_of(image), detail)


@dataclass
class Report:
    """Problems of one annotation file and its images.

    Attributes:
        path: of the annotation file.
        problems: in the order in which they were found.
        num_images: length of the list of images.
        num_annotations: length of the list of annotations.
        classes: numbers of objects and of crowds by class name, valid or not.
    """

    path: str
    problems: list[Problem]
    num_images: int
    num_annotations: int
    classes: dict[str, tuple[int, int]]

    @property
    def errors(self) -> list[Problem]:
        """Problems of invalid entries."""
        return [x for x in self.problems if x.severity == "error"]

    def format(self) -> str:
        """The numbers of errors and notes, and a table with a row for each kind of problem."""
        num_errors = len(self.errors)
        text = (
            f"{_line(self.path, 200)}: {self.num_images:,} images, {self.num_annotations:,} "
            f"annotations\nerrors (invalid entries): {num_errors:,}\n"
            f"notes (accepted or converted by Detectron2): {len(self.problems) - num_errors:,}"
        )
        groups = defaultdict(list)
        for problem in self.problems:
            groups[problem.kind].append(problem)
        rows = [
            (severity, kind, len(found), _num_images(found), _example(found[0]))
            for kind, severity in SEVERITIES.items()
            if (found := groups[kind])
        ]
        headers = ("severity", "kind", "number", "images", "first example")
        return f"{text}\n\n{_table(rows, headers)}" if rows else text

    def format_classes(self) -> str:
        """A table of the numbers of objects and crowds of each class, the most frequent first."""
        ordered = sorted(self.classes.items(), key=lambda x: -sum(x[1]))
        rows = [(_line(name, 40), *x) for name, x in ordered[:MOST_CLASSES]]
        table = _table(rows, ("class", "objects", "crowds"))
        left_out = len(ordered) - len(rows)
        return f"{table}\nand {left_out:,} rarer classes" if left_out else table


def without_errors(content: dict, report: Report) -> dict:
    """The content of a checked annotation file without invalid images and annotations.

    Annotations of invalid images are left out, too. The content is not changed.
    """
    wrong = {(x.section, x.position) for x in report.errors}
    valid = {
        section: [x for i, x in enumerate(content[section]) if (section, i) not in wrong]
        for section in ("images", "annotations")
        if section in content
    }
    if "annotations" in valid:
        ids = {x["id"] for x in valid["images"]}
        valid["annotations"] = [x for x in valid["annotations"] if x["image_id"] in ids]
    return {**content, **valid}


def _num_images(problems: list[Problem]) -> int:
    if problems[0].section == "images":
        return len({x.position for x in problems})
    return len({x.file_name if x.image_id is None else x.image_id for x in problems} - {None})


def _example(problem: Problem) -> str:
    image = "" if problem.image_id is None else f"image {problem.image_id}"
    name = "" if problem.file_name is None else shown(problem.file_name)
    annotation = "" if problem.annotation_id is None else f"annotation {problem.annotation_id}"
    where = " ".join(filter(None, (image, name, annotation)))
    place = where or f"{problem.section}[{problem.position}]"
    return _line(f"{place}: {problem.detail}", EXAMPLE_CHARACTERS)


def _table(rows: list[tuple], headers: tuple[str, ...]) -> str:
    cells = [[f"{x:,}" if isinstance(x, int) else x for x in row] for row in rows]
    alignment = ["right" if isinstance(x, int) else "left" for x in rows[0]]
    # A class may have a name such as "1e5".
    return tabulate(cells, headers, colalign=alignment, disable_numparse=True)


def _line(text: str, characters: int) -> str:
    """Cuts the text, and escapes line breaks, control characters and lone surrogates."""
    line = "".join(x if x.isprintable() else repr(x)[1:-1] for x in text[: characters + 1])
    return line if len(line) <= characters else line[: characters - 3] + "..."
