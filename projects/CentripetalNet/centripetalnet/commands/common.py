"""What the commands share."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import Callable, Optional

from centripetalnet.io.errors import users_mistake


def config_parser(description: str, weights: bool = True) -> argparse.ArgumentParser:
    """A parser with ``--config-file`` and the changes to the config.

    Args:
        description: of the command, shown as it stands.
        weights: whether the command needs ``MODEL.WEIGHTS``. If so, the changes follow ``--opts``,
            as in Detectron2's demo; otherwise they are the last arguments, as in its other tools.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="path or name of a config file"
    )
    parser.add_argument(
        "--opts" if weights else "opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="changes to the config as KEY VALUE pairs"
        + ("; MODEL.WEIGHTS is required" if weights else ""),
    )
    return parser


def command(
    get_parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], Optional[int]],
) -> Callable[..., int]:
    """The ``main`` of a command, which takes its arguments, by default those of the command line.

    Args:
        get_parser: makes the parser of the options.
        run: gets the parsed options, see :func:`exit_status`.
    """

    def main(argv: Optional[Sequence[str]] = None) -> int:
        return exit_status(run, get_parser().parse_args(argv))

    return main


def exit_status(
    run: Callable[[argparse.Namespace], Optional[int]], args: argparse.Namespace
) -> int:
    """Runs a command.

    Returns:
        The exit status: that of ``run`` or 0, and 1 after an error that the user can mend, which is
        printed in one line.

    Raises:
        Exception: a bug, with its traceback.
    """
    try:
        return run(args) or 0
    # Of any error it is asked whether the user can mend it; a bug is raised again.
    except Exception:
        mistake = users_mistake(traceback.format_exc())
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 1
