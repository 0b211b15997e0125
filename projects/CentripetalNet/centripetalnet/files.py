"""Atomic writing of files."""

import os
from contextlib import contextmanager, suppress
from typing import IO, Iterator

UNFINISHED = ".part"
"""Suffix of the name of an incomplete file."""


@contextmanager
def complete_path(path: str, ending: str = "") -> Iterator[str]:
    """A name to write to; the file gets its own once the block has ended without an error.

    An existing file remains until then, and after an error or Ctrl-C.

    Args:
        path: its name in the end.
        ending: of the name until then, for what looks at it.

    Yields:
        The name until then.
    """
    unfinished = f"{path}{UNFINISHED}{ending}"
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.remove(unfinished)
        raise


@contextmanager
def complete_file(path: str, mode: str = "w", durable: bool = False) -> Iterator[IO]:
    """Opens a file to write under :func:`complete_path`.

    Args:
        path: its name in the end.
        mode: "w" for text, in UTF-8, or "wb".
        durable: whether it is on the disk, and not only on its way there, before it has its name.

    Yields:
        The open file.

    Raises:
        OSError: if it cannot be written.
    """
    with complete_path(path) as unfinished:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
