"""Atomic writing of files, local and remote."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from detectron2.utils.file_io import PathManager

UNFINISHED = ".part"
"""Suffix of a file that is not complete yet."""


@contextmanager
def atomic_path(path: str, ending: str = "", durable: bool = False) -> Iterator[str]:
    """Yields a temporary path that is renamed to ``path`` when the block ends without an error.

    After an error, Ctrl-C included, the previous file stays and the temporary one is removed.

    Args:
        path: the final path, also a remote one of iopath's, such as "s3://...": the file is then
            written to a local temporary folder and copied when the block ends.
        ending: extension of the temporary path, for writers that check it.
        durable: whether to fsync the folder after the rename.

    Yields:
        The temporary path.
    """
    if "://" in path:
        with tempfile.TemporaryDirectory() as folder:
            unfinished = os.path.join(folder, f"file{UNFINISHED}{ending}")
            yield unfinished
            with open(unfinished, "rb") as source, PathManager.open(path, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    unfinished = f"{path}{UNFINISHED}{ending}"
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.remove(unfinished)
        raise
    if durable:
        # Some systems cannot sync a folder.
        with suppress(OSError):
            _sync_folder(os.path.dirname(path) or os.curdir)


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def atomic_file(path: str, mode: str = "w", durable: bool = False) -> Iterator[IO]:
    """Opens a file to write, atomically as :func:`atomic_path`.

    Args:
        path: the final path.
        mode: "w" for text, in UTF-8, or "wb".
        durable: whether to fsync the file before the rename and the folder after it.

    Yields:
        The open file.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_path(path, durable=durable) as unfinished:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
