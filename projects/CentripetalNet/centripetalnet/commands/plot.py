"""Draws losses, learning rate and AP of a finished or running training.

    %(prog)s OUTPUT_DIR

reads OUTPUT_DIR/metrics.json and writes OUTPUT_DIR/training.png.
"""

import argparse

from centripetalnet.commands.common import command
from centripetalnet.visualization import plot_training


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the training")
    parser.add_argument("--output", metavar="FILE", help="file of the figure instead")
    return parser


def run(args: argparse.Namespace) -> None:
    """Draws the curves.

    Args:
        args: of :func:`get_parser`.
    """
    print(plot_training(args.output_dir, args.output))


main = command(get_parser, run)
