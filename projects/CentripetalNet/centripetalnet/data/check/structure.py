"""Checks the overall structure of an annotation file."""

import math
import reprlib
from typing import Any


class _ShortRepr(reprlib.Repr):
    """Shortens any value, however large or nested, to about a line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        # Python raises an error for integers of more than some thousand digits.
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 64 else repr(x)


shown = _ShortRepr().repr


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of at most 64 bits; true and false are not."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are not."""
    if type(value) is float:
        return math.isfinite(value)
    return is_integer(value)


def entries_of(content: Any, section: str, path: str, required: bool = True) -> list[dict]:
    """Returns one of the lists of an annotation file.

    Args:
        content: the parsed file.
        section: ``images``, ``annotations`` or ``categories``.
        path: of the file, for the message.
        required: whether a missing list is an error; otherwise it is empty.

    Returns:
        The list of dicts.

    Raises:
        ValueError: if it is anything else; names the file and the value.
    """
    if not isinstance(content, dict):
        raise _not_coco(path, f"it holds {shown(content)}")
    if section not in content and not required:
        return []
    if section not in content:
        raise _not_coco(path, f"it has no list {section!r}")
    entries = content[section]
    if not isinstance(entries, list):
        raise _not_coco(path, f"its {section!r} is {shown(entries)}")
    position = next((i for i, x in enumerate(entries) if not isinstance(x, dict)), None)
    if position is not None:
        raise _not_coco(path, f"{section}[{position}] is {shown(entries[position])}, not an object")
    return entries


def class_names(content: Any, path: str) -> dict[int, str]:
    """Returns the categories of an annotation file.

    Args:
        content: the parsed file.
        path: of the file, for the message.

    Returns:
        Names by id, in the order of the ids.

    Raises:
        ValueError: if the categories are not a non-empty list of objects with an integer ``id`` and
            a string ``name``, or an id or a name is not unique.
    """
    names: dict[int, str] = {}
    for position, category in enumerate(entries_of(content, "categories", path)):
        category_id, name = category.get("id"), category.get("name")
        if not is_integer(category_id) or not isinstance(name, str):
            raise _not_coco(
                path,
                f"categories[{position}] has the id {shown(category_id)} and the name "
                f"{shown(name)}, expected an integer and a string",
            )
        for what, value, values in (("id", category_id, names), ("name", name, names.values())):
            if value in values:
                raise ValueError(
                    f"{path} has more than one category with the {what} {shown(value)}. Give each "
                    f"category a unique {what}."
                )
        names[category_id] = name
    if not names:
        raise _not_coco(path, "its list 'categories' is empty")
    return dict(sorted(names.items()))


def _not_coco(path: str, seen: str) -> ValueError:
    return ValueError(
        f"{path} is not a COCO annotation file: {seen}. Expected JSON with the lists 'images', "
        "'annotations' and 'categories', each of objects, each category with 'id' and 'name'."
    )
