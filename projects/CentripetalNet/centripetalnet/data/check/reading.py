"""Reads annotation files in COCO format, and says what is in them."""

import functools
import json
import math
import os
import reprlib
from typing import Any, Optional

from detectron2.utils.file_io import PathManager

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 3
shown = _short.repr
"""``repr`` of any value, however large or nested, in about a line."""


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of at most 64 bits; true and false are not."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are not."""
    return math.isfinite(value) if type(value) is float else is_integer(value)


def is_file_name(value: Any) -> bool:
    """Whether a value is a string that is not empty."""
    return isinstance(value, str) and value != ""


def integer_of(entry: dict, name: str) -> Optional[int]:
    """The value of a field, if it is an integer of at most 64 bits."""
    return entry[name] if is_integer(entry.get(name)) else None


def file_name_of(image: dict) -> Optional[str]:
    """The file name of an entry of ``images``, if it is valid."""
    return image["file_name"] if is_file_name(image.get("file_name")) else None


def seen(entry: dict, name: str) -> str:
    """What the field of an entry is, in words."""
    return f"{name} is {shown(entry[name])}" if name in entry else f"there is no {name}"


def read_annotation_file(json_file: str) -> Any:
    """Reads a JSON file and returns its value, of any type.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not JSON; names it.
    """
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"there is no annotation file {json_file} (seen from {os.getcwd()}). Put the dataset "
            "there, or set the environment variable DETECTRON2_DATASETS to its parent folder."
        )
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    # RecursionError: deeply nested lists.
    except (ValueError, RecursionError) as error:
        raise _not_coco(json_file, f"{type(error).__name__}: {error}") from error


def entries_of(content: Any, section: str, path: str) -> list[dict]:
    """One of the lists of dicts of a parsed file.

    Raises:
        ValueError: if it is anything else; names the file ``path`` and the value.
    """
    if not isinstance(content, dict):
        raise _not_coco(path, f"it holds {shown(content)}")
    # A test set has no annotations.
    if section not in content and section != "annotations":
        raise _not_coco(path, f"it has no list {section!r}")
    entries = content.get(section, [])
    if not isinstance(entries, list):
        raise _not_coco(path, f"its {section!r} is {shown(entries)}")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _not_coco(path, f"{section}[{position}] is {shown(entry)}, not an object")
    return entries


def class_names(content: Any, path: str) -> dict[int, str]:
    """Names of the categories of a parsed file, by id and in the order of the ids.

    Raises:
        ValueError: if the categories are not a non-empty list of objects with an integer ``id`` and
            a string ``name``, or an id or a name is not unique.
    """
    names: dict[int, str] = {}
    for position, category in enumerate(entries_of(content, "categories", path)):
        category_id, name = integer_of(category, "id"), category.get("name")
        if category_id is None or not isinstance(name, str):
            raise _not_coco(path, f"categories[{position}] is {shown(category)}")
        if category_id in names or name in names.values():
            raise ValueError(
                f"{path} has more than one category with the id {category_id} or the name "
                f"{shown(name)}. Make both unique."
            )
        names[category_id] = name
    if not names:
        raise _not_coco(path, "its list 'categories' is empty")
    return dict(sorted(names.items()))


def check_coco_categories(json_file: str) -> list[str]:
    """Names of the categories of an annotation file, in the order of their ids.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not in COCO format, or an id or a name of a category is not unique.
    """
    path = PathManager.get_local_path(json_file)
    return list(_categories(json_file, os.path.getmtime(path) if os.path.isfile(path) else 0.0))


@functools.cache
def _categories(json_file: str, modified: float) -> tuple[str, ...]:
    """Cached, since a large file would be read again at each evaluation."""
    return tuple(class_names(read_annotation_file(json_file), json_file).values())


def _not_coco(path: str, problem: str) -> ValueError:
    return ValueError(
        f"{path} is not a COCO annotation file: {problem}. Expected JSON with the lists 'images', "
        "'annotations' and 'categories' of objects, each category with an integer 'id' and a "
        "string 'name'."
    )
