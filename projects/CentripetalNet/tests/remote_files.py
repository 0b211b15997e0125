"""A remote store for tests, whose paths only Detectron2's PathManager can open."""

import os
import shutil
from pathlib import Path

from detectron2.utils.file_io import PathHandler

PREFIX = "test-store://"


class FolderAsStore(PathHandler):
    """Stores files of ``test-store://`` in a folder and returns copies of them."""

    folder: Path
    copies: Path

    def _get_supported_prefixes(self):
        return [PREFIX]

    def at(self, path):
        return self.folder / path[len(PREFIX) :]

    def _get_local_path(self, path, **kwargs):
        copy = self.copies / path[len(PREFIX) :]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.at(path), copy)
        return str(copy)

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        return open(self.at(path), mode, buffering)

    def _exists(self, path, **kwargs):
        return self.at(path).exists()

    def _isfile(self, path, **kwargs):
        return self.at(path).is_file()

    def _isdir(self, path, **kwargs):
        return self.at(path).is_dir()

    def _ls(self, path, **kwargs):
        return os.listdir(self.at(path))

    def _mkdirs(self, path, **kwargs):
        self.at(path).mkdir(parents=True, exist_ok=True)

    def _rm(self, path, **kwargs):
        self.at(path).unlink()
