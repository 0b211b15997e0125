"""Trains and evaluates; the options are those of Detectron2's tools/train_net.py."""

import sys
import traceback
from typing import Optional, Sequence

from centripetalnet import engine
from centripetalnet.engine.launch import argument_parser, launch_processes
from centripetalnet.io.errors import users_mistake


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
    try:
        launch_processes(engine.main, args)
    # Of any error it is asked whether the user can mend it; a bug is raised again.
    except Exception:
        mistake = users_mistake(traceback.format_exc())
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 1
    return 0
