"""The report about a dataset, and the dataset without invalid entries."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Optional, Union

from .structure import entries_of, is_integer, shown

ERROR = "error"
NOTE = "note"

# All kinds of problems. An entry with an error is invalid, one with a note is used as Detectron2
# converts it. A longer list needs more PAGE_LINES.
SEVERITIES = {
    # entries of "images"
    "image without a valid id, file_name, height or width": ERROR,
    "image id is not unique": ERROR,
    "image file is missing": ERROR,
    "image file is truncated": ERROR,
    "image file cannot be read": ERROR,
    "image size differs from the annotation file": ERROR,
    "file name leads outside the image folder": NOTE,
    "rotated by EXIF": NOTE,
    "more than 8 bits per channel": NOTE,
    "CMYK": NOTE,
    "palette": NOTE,
    "alpha channel": NOTE,
    "several frames": NOTE,
    "Pillow warning": NOTE,
    # entries of "annotations"
    "annotation without a valid id, image_id or category_id": ERROR,
    "annotation id is not unique": ERROR,
    "annotation of an unknown image": ERROR,
    "annotation of an unknown category": ERROR,
    "bbox_mode is not XYXY_ABS or XYWH_ABS": ERROR,
    "bbox is not four finite numbers": ERROR,
    "box of negative size": ERROR,
    "box outside its image": ERROR,
    "ignore is not 0": ERROR,
    "iscrowd is not 0 or 1": ERROR,
    "segmentation of unknown format": ERROR,
    "invalid polygon": ERROR,
    "invalid run-length encoding": ERROR,
    "invalid keypoints": ERROR,
    # COCO 2017 itself has some, which Detectron2 ignores.
    "box without an area": NOTE,
    "box reaches outside its image": NOTE,
    "polygon dropped by Detectron2": NOTE,
    "annotation id is not positive": NOTE,
    "no iscrowd": NOTE,
    "no valid area": NOTE,
}

PAGE_LINES = 60
LINE_CHARACTERS = 140
CLASS_COLUMNS = 3
CLASS_CHARACTERS = 24
# Rows of the table of classes if it does not fit all of them.
MOST_FREQUENT_ROWS = 5
RAREST_ROWS = 3


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

    def as_dict(self) -> dict[str, Any]:
        """The problem as a JSON object."""
        return {"severity": self.severity, **self._asdict()}


@dataclass(frozen=True)
class Report:
    """Problems of one annotation file and its images. ``+`` merges reports of the same file.

    Attributes:
        path: of the annotation file.
        problems: in the order in which they were found.
        num_images: length of the list of images.
        num_annotations: length of the list of annotations.
        classes: numbers of objects and of crowds by class name, valid or not. Empty in a report of
            images only.
    """

    path: str
    problems: list[Problem]
    num_images: int
    num_annotations: int
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        """Problems of invalid entries."""
        return [x for x in self.problems if x.severity == ERROR]

    @property
    def notes(self) -> list[Problem]:
        """Problems of entries that are used as Detectron2 converts them."""
        return [x for x in self.problems if x.severity == NOTE]

    @property
    def _file(self) -> tuple[str, int, int]:
        return self.path, self.num_images, self.num_annotations

    def __add__(self, other: "Report") -> "Report":
        if self._file != other._file:
            raise ValueError(
                "only reports of the same annotation file can be merged, got one of "
                f"{self._file} and one of {other._file} (path, images, annotations)"
            )
        classes = self.classes or other.classes
        return replace(self, problems=self.problems + other.problems, classes=classes)

    def format(self, max_examples: int = 3) -> str:
        """The report as text of at most ``PAGE_LINES`` lines.

        Args:
            max_examples: most examples per kind of problem; fewer if the page has no room.

        Returns:
            The number of problems of each kind with examples, and the classes.
        """
        head = [
            _on_one_line(self.path),
            f"{self.num_images:,} images, {self.num_annotations:,} annotations"
            + f" of {len(self.classes):,} classes" * bool(self.classes),
        ]
        classes = _class_lines(self.classes)
        for examples in range(min(max_examples, PAGE_LINES), -1, -1):
            lines = head + self._problem_lines(examples) + classes
            if len(lines) <= PAGE_LINES:
                break
        return "\n".join(_cut(x, LINE_CHARACTERS) for x in lines)

    def _problem_lines(self, max_examples: int) -> list[str]:
        groups = defaultdict(list)
        for problem in self.problems:
            groups[problem.kind].append(problem)
        lines = []
        titles = {
            ERROR: "errors (invalid entries)",
            NOTE: "notes (accepted or converted by Detectron2)",
        }
        for severity, title in titles.items():
            kinds = [x for x in SEVERITIES if x in groups and SEVERITIES[x] == severity]
            lines += ["", f"{title}:" if kinds else f"{title}: none"]
            for kind in kinds:
                problems = groups[kind]
                lines.append(f"  {kind:<56}{_extent(problems)}")
                lines += [f"      {_example(x)}" for x in problems[:max_examples]]
        return lines


def without_errors(content: dict, report: Report) -> dict:
    """An annotation file's content without invalid entries.

    Args:
        content: the checked content; it is not changed.
        report: from ``check_annotations``, with or without that of the images.

    Returns:
        The content without images that have an error, their annotations, and annotations that have
        an error.

    Raises:
        ValueError: if the content is not in COCO format.
    """
    images = entries_of(content, "images", report.path)
    annotations = entries_of(content, "annotations", report.path, required=False)
    wrong = {(x.section, x.position) for x in report.errors}
    kept = [x for i, x in enumerate(images) if ("images", i) not in wrong]
    lost_ids = {x["id"] for x in images if is_integer(x.get("id"))}
    lost_ids -= {x["id"] for x in kept if is_integer(x.get("id"))}
    result = {**content, "images": kept}
    if "annotations" in content:
        result["annotations"] = [
            x
            for i, x in enumerate(annotations)
            if ("annotations", i) not in wrong
            and not (is_integer(x.get("image_id")) and x["image_id"] in lost_ids)
        ]
    return result


def _extent(problems: list[Problem]) -> str:
    """Number of problems and of affected images."""
    count = f"{len(problems):>10,}"
    if problems[0].section == "images":
        return count
    images = len({x.file_name if x.image_id is None else x.image_id for x in problems} - {None})
    return f"{count} in {images:,} image{'s' * (images != 1)}"


def _example(problem: Problem) -> str:
    parts = []
    if problem.image_id is not None:
        parts.append(f"image {problem.image_id}")
    if problem.file_name is not None:
        parts.append(shown(problem.file_name))
    if problem.annotation_id is not None:
        parts.append(f"annotation {problem.annotation_id}")
    where = " ".join(parts) or f"{problem.section}[{problem.position}]"
    return f"{where}: {_on_one_line(problem.detail[:LINE_CHARACTERS])}"


def _class_lines(classes: dict[str, tuple[int, int]]) -> list[str]:
    """A table of the classes, the most frequent first; of many the first and the last rows."""
    if not classes:
        return []
    ordered = sorted(classes.items(), key=lambda x: -sum(x[1]))
    first, last = MOST_FREQUENT_ROWS * CLASS_COLUMNS, RAREST_ROWS * CLASS_COLUMNS
    lines = ["", "objects + crowds of each class:"]
    if len(ordered) <= first + last:
        return lines + _rows(ordered)
    hidden = ordered[first:-last]
    most, least = sum(hidden[0][1]), sum(hidden[-1][1])
    between = f"  ... and {len(hidden):,} more, each with {least:,} to {most:,} ..."
    return lines + _rows(ordered[:first]) + [between] + _rows(ordered[-last:])


def _rows(classes: list[tuple[str, tuple[int, int]]]) -> list[str]:
    cells = [
        f"{_cut(_on_one_line(name), CLASS_CHARACTERS):<{CLASS_CHARACTERS}}"
        f" {objects:>9,} + {crowds:<6,}"
        for name, (objects, crowds) in classes
    ]
    starts = range(0, len(cells), CLASS_COLUMNS)
    return ["  " + "  ".join(cells[i : i + CLASS_COLUMNS]).rstrip() for i in starts]


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 3] + "..."


def _on_one_line(text: str) -> str:
    """Escapes line breaks, control characters and lone surrogates."""
    return "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)
