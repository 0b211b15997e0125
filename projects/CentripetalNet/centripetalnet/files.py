"""Files that have their name only once they are complete."""

import os
from contextlib import contextmanager, suppress
from typing import IO, Iterator


@contextmanager
def complete_file(path: str, mode: str = "w") -> Iterator[IO]:
    """Opens a file to write; it lies beside its place until the block has ended without an error.

    What was there before stays until then, and after an error.

    Args:
        path: its name in the end.
        mode: "w" for text, in UTF-8, or "wb".

    Yields:
        The open file.

    Raises:
        OSError: if it cannot be written.
    """
    unfinished = f"{path}.unfinished"
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.remove(unfinished)
        raise
