#!/usr/bin/env python3
"""Draws losses, learning rate and AP of a finished or running training.

    plot_training.py OUTPUT_DIR

reads OUTPUT_DIR/metrics.json and writes OUTPUT_DIR/training.png.
"""

import argparse
import sys

from centripetalnet.visualization import plot_training


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the training")
    parser.add_argument("--output", metavar="FILE", help="file of the figure instead")
    args = parser.parse_args()
    print(plot_training(args.output_dir, args.output))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
