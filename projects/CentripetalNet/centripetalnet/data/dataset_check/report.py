"""What was found in a dataset, as a page of text, and the dataset without it."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from .structure import entries_of, is_integer, shown

ERROR = "error"
NOTE = "note"

# Every kind of problem. An error cannot be used; what has a note is used, converted as Detectron2
# converts it. The page is written for a list of this length: see PAGE_LINES.
SEVERITIES = {
    # entries of "images"
    "image without a usable id, file_name, height or width": ERROR,
    "image id is not unique": ERROR,
    "image file is missing": ERROR,
    "image file is truncated": ERROR,
    "image file cannot be read": ERROR,
    "image has another size": ERROR,
    "file name leads outside the image folder": NOTE,
    "rotated by EXIF": NOTE,
    "more than 8 bits a channel": NOTE,
    "CMYK": NOTE,
    "palette": NOTE,
    "alpha channel": NOTE,
    "several frames": NOTE,
    "Pillow warns": NOTE,
    # entries of "annotations"
    "annotation without a usable id, image_id or category_id": ERROR,
    "annotation id is not unique": ERROR,
    "annotation of an unknown image": ERROR,
    "annotation of an unknown category": ERROR,
    "bbox_mode is not XYXY_ABS or XYWH_ABS": ERROR,
    "bbox is not four finite numbers": ERROR,
    "box of negative size": ERROR,
    "box outside its image": ERROR,
    "ignore is not 0": ERROR,
    "iscrowd is not 0 or 1": ERROR,
    "segmentation is of no known form": ERROR,
    "polygon cannot be used": ERROR,
    "run-length code cannot be used": ERROR,
    "keypoints cannot be used": ERROR,
    # COCO 2017 itself has some, which Detectron2 passes over.
    "box without an area": NOTE,
    "box reaches outside its image": NOTE,
    "polygon is left out": NOTE,
    "annotation id is not positive": NOTE,
    "no iscrowd": NOTE,
    "no usable area": NOTE,
}

PAGE_LINES = 60
LINE_CHARACTERS = 140
CLASS_COLUMNS = 3
CLASS_CHARACTERS = 24
# Rows of the table of classes where not all classes have place in it.
MOST_FREQUENT_ROWS = 5
RAREST_ROWS = 3


class Problem(NamedTuple):
    """One thing that is wrong with one entry of an annotation file.

    Attributes:
        kind: one of ``SEVERITIES``.
        section: the list that the entry stands in, ``images`` or ``annotations``.
        position: its index there.
        image_id: of the image or of the annotation's image, if that is an integer; in a record of
            a function also a text.
        annotation_id: None for an image, or if it is no integer.
        file_name: of the image, if it is known.
        detail: what was seen, and what belongs there.
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
        """``error``: cannot be used. ``note``: is used, converted as Detectron2 converts it."""
        return SEVERITIES[self.kind]

    def as_dict(self) -> Dict[str, Any]:
        """The problem as an object of JSON."""
        return {"severity": self.severity, **self._asdict()}


@dataclass(frozen=True)
class Report:
    """Problems of one annotation file and its images.

    Reports of the same file are merged by ``+``.

    Attributes:
        path: of the annotation file.
        problems: in the order in which they were found.
        num_images: entries of the list of images.
        num_annotations: entries of the list of annotations.
        classes: by class name the number of objects and that of crowds, whether or not they can be
            used. Empty in a report of images only.
    """

    path: str
    problems: List[Problem]
    num_images: int
    num_annotations: int
    classes: Dict[str, Tuple[int, int]] = field(default_factory=dict)

    @property
    def errors(self) -> List[Problem]:
        """Problems of what cannot be used."""
        return [x for x in self.problems if x.severity == ERROR]

    @property
    def notes(self) -> List[Problem]:
        """Problems of what is used all the same."""
        return [x for x in self.problems if x.severity == NOTE]

    @property
    def _file(self) -> Tuple[str, int, int]:
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
        """The report as text of at most ``PAGE_LINES`` lines, however many problems there are.

        Args:
            max_examples: most examples of a kind of problem; fewer are given where there are so
                many kinds that they would not have place on the page.

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

    def _problem_lines(self, max_examples: int) -> List[str]:
        groups = defaultdict(list)
        for problem in self.problems:
            groups[problem.kind].append(problem)
        lines = []
        titles = {ERROR: "errors, cannot be used", NOTE: "notes, used as Detectron2 converts it"}
        for severity, title in titles.items():
            kinds = [x for x in SEVERITIES if x in groups and SEVERITIES[x] == severity]
            lines += ["", f"{title}:" if kinds else f"{title}: none"]
            for kind in kinds:
                problems = groups[kind]
                lines.append(f"  {kind:<56}{_extent(problems)}")
                lines += [f"      {_example(x)}" for x in problems[:max_examples]]
        return lines


def without_errors(content: dict, report: Report) -> dict:
    """An annotation file's content without what cannot be used.

    Args:
        content: the content that the report is about; it is not changed.
        report: from ``check_annotations``, with or without that of the images.

    Returns:
        The content without images that have an error, without their annotations, and without
        annotations that have an error. All other entries are the given ones.

    Raises:
        ValueError: if the content is so different from COCO format that leaving out does not help.
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


def _extent(problems: List[Problem]) -> str:
    """How many, and of how many images."""
    count = f"{len(problems):>10,}"
    if problems[0].section == "images":
        return count
    images = len({x.image_id for x in problems if x.image_id is not None})
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


def _class_lines(classes: Dict[str, Tuple[int, int]]) -> List[str]:
    """A table of the classes, the most frequent first; of many only both ends."""
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


def _rows(classes: List[Tuple[str, Tuple[int, int]]]) -> List[str]:
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
    """Line breaks, control characters and lone surrogates, which cannot be printed, as escapes."""
    return "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)
