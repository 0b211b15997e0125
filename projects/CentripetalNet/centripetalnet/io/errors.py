"""Errors that a user can mend, and errors of other processes."""

import builtins
import os
import re
import traceback
from pathlib import Path
from typing import Optional

from detectron2.utils import comm

# Where an error comes from in a traceback, the line of code there, and what it is.
_PLACE = re.compile(r'^ *File "(.+)", line \d+.*\n *(.*)', re.MULTILINE)
_ERROR = re.compile(r"^([\w.]+): (.*)", re.MULTILINE | re.DOTALL)
_PACKAGE = str(Path(__file__).parents[1]) + os.sep


def users_mistake(error: str) -> Optional[str]:
    """The message of an error that the user can mend, such as a missing file or a wrong value.

    These are errors of the operating system and errors that this package raises.

    Args:
        error: the traceback. It may contain that of a worker or child process, which then decides.

    Returns:
        The message, or None for a bug, which needs its traceback.
    """
    *_, place = _PLACE.finditer(error)
    end = _ERROR.search(error, place.end())
    kind = getattr(builtins, end.group(1), None) if end else None
    if not isinstance(kind, type):
        return None
    file, code = place.groups()
    is_raised_here = file.startswith(_PACKAGE) and code.startswith("raise ")
    return end.group(2).strip() if issubclass(kind, OSError) or is_raised_here else None


def raise_in_all_processes(error: Optional[Exception]) -> None:
    """Raises in all processes if one of them has an error; they would wait for it otherwise.

    Args:
        error: of this process, if it has one.

    Raises:
        Exception: that error; in the other processes a RuntimeError with its traceback.
    """
    text = None
    if error is not None:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for rank, problem in enumerate(comm.all_gather(text)):
        if error is not None:
            raise error
        if problem is not None:
            raise RuntimeError(f"process {rank} failed:\n{problem}")
