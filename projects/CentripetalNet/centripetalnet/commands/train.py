"""Trains and evaluates; the options are those of Detectron2's tools/train_net.py."""

import sys
from collections.abc import Sequence
from typing import Optional

from centripetalnet import engine
from centripetalnet.commands.common import exit_status
from centripetalnet.engine.launch import argument_parser, launch_processes


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command ``centripetalnet-train``, which is ``train_net.py`` too.

    Args:
        argv: the arguments, by default those of the command line.

    Returns:
        The exit status: 0, or 1 after an error that the user can mend, printed in one line.

    Raises:
        Exception: a bug, with its traceback.
    """
    args = argument_parser().parse_args(argv)
    print("Command Line Args:", args)
    return exit_status(lambda args: launch_processes(engine.main, args), args)


if __name__ == "__main__":
    sys.exit(main())
