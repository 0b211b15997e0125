"""Command line that builds the dataset."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from .builder import build_silhouettes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}", description="Builds the silhouettes dataset."
    )
    parser.add_argument(
        "--root",
        default=os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "silhouettes"),
        help="folder to create (default: %(default)s)",
    )
    root = parser.parse_args(arguments).root
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_silhouettes(root)
    print(f"The silhouettes dataset is in {root}")


if __name__ == "__main__":
    main()
