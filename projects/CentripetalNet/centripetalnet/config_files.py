"""The config files of the package, found by path or name."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Dict, Union

from detectron2.utils.file_io import PathManager

_PACKAGE = Path(__file__).resolve().parent
_BASE = "Base-CentripetalNet.yaml"
# In a wheel the configs are inside the package, in the repository beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def packaged_configs() -> Dict[str, str]:
    """Paths of the config files of the package by name, such as "centripetal_hg104"."""
    folder = next((x for x in _FOLDERS if (x / _BASE).is_file()), None)
    if folder is None:
        return {}
    paths = (path for path in folder.rglob("*.yaml") if path.name != _BASE)
    return {path.stem: str(path) for path in sorted(paths)}


def find_config(config: Union[str, "os.PathLike[str]"]) -> str:
    """Returns the path of a config file.

    Args:
        config: a path, also a remote one that Detectron2's PathManager handles, or the name of a
            config of the package. An existing path comes first.

    Raises:
        FileNotFoundError: if it is neither; the message lists the names.
    """
    config = os.fspath(config)
    # The handler of https:// addresses has no isfile.
    with suppress(NotImplementedError):
        if PathManager.isfile(config):
            return config
    packaged = packaged_configs()
    if config in packaged:
        return packaged[config]
    raise FileNotFoundError(
        f"there is no config file {config!r} (relative to {os.getcwd()}), and the package has no "
        f"config of that name. Give the path of a yaml file or one of these names: "
        f"{', '.join(packaged) or '(none: the installation lacks its configs, install it again)'}"
    )
