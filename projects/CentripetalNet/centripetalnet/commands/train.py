"""Trains and evaluates; the options are those of Detectron2's tools/train_net.py."""

from typing import Optional, Sequence

from centripetalnet import engine
from centripetalnet.command_line import argument_parser, launch_processes


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command ``centripetalnet-train``, which is ``train_net.py`` too.

    Args:
        argv: the arguments, by default those of the command line.

    Returns:
        The exit status, 0; what goes wrong is raised.
    """
    args = argument_parser().parse_args(argv)
    print("Command Line Args:", args)
    launch_processes(engine.main, args)
    return 0
