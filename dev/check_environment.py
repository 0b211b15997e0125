"""Prints what the current interpreter lacks for `make demo`, `make test` or `make lint`.

Imports neither PyTorch nor Detectron2, to be fast.
"""

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Optional

MIN_TORCH = (2, 1)

# Modules and the arguments of pip that install them.
BUILD = {
    "pkg_resources": "'setuptools<81'",  # Detectron2's model_zoo imports it.
    "safetensors": "safetensors",
}
DEMO = {
    "animal_mnist": "animal-mnist==0.4",
    "cv2": "opencv-python-headless",
    "matplotlib": "matplotlib",
    "pycocotools": "pycocotools",
    "sklearn": "scikit-learn",
}
TEST = {
    **DEMO,
    "expecttest": "expecttest",
    "hypothesis": "hypothesis",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
}
LINT = {"ruff": "ruff"}
EXTRAS: dict[str, dict[str, str]] = {
    "env": BUILD,
    "demo": {**BUILD, **DEMO},
    "test": {**BUILD, **TEST},
    "lint": LINT,
}
# Only their image files are used, without their dependencies.
PICTURES_ONLY = {"animal-mnist==0.4"}


def is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def torch_version() -> Optional[tuple[int, ...]]:
    """Major and minor version of the installed PyTorch, or None."""
    try:
        found = re.match(r"(\d+)\.(\d+)", version("torch"))
    except PackageNotFoundError:
        return None
    return tuple(int(number) for number in found.groups()) if found else None


def missing_frameworks() -> list[str]:
    problems = []
    wanted = ".".join(map(str, MIN_TORCH))
    torch = torch_version()
    if torch is None:
        problems.append(f"PyTorch is missing. Install {wanted} or newer (see pytorch.org).")
    elif torch < MIN_TORCH:
        problems.append(f"PyTorch is {version('torch')}, expected {wanted} or newer.")
    if not is_importable("detectron2"):
        state = "is missing"
    elif not is_importable("detectron2._C"):
        state = "lacks its compiled part, `detectron2._C`"
    else:
        return problems
    problems.append(
        f"Detectron2 {state}. Install PyTorch first, then build its main branch (see INSTALL.md):"
        "\n    python -m pip install --no-build-isolation"
        " 'git+https://github.com/facebookresearch/detectron2.git'"
    )
    return problems


def missing_extras(purpose: str) -> list[str]:
    missing = [name for module, name in EXTRAS[purpose].items() if not is_importable(module)]
    commands = []
    plain = [name for name in missing if name not in PICTURES_ONLY]
    bare = [name for name in missing if name in PICTURES_ONLY]
    if plain:
        commands.append("python -m pip install " + " ".join(plain))
    if bare:
        commands.append(
            "python -m pip install --no-deps --ignore-requires-python " + " ".join(bare)
        )
    if not commands:
        return []
    return [f"Packages for `make {purpose}` are missing:\n    " + "\n    ".join(commands)]


def main(purpose: str) -> int:
    problems = [] if purpose == "lint" else missing_frameworks()
    problems += missing_extras(purpose)
    if problems:
        print(f"The current environment ({sys.executable}) is not ready.", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
