"""The options of train_net.py, and the processes that they ask for."""

import argparse
from datetime import timedelta
from multiprocessing import active_children
from multiprocessing.process import BaseProcess as Process
from typing import Callable

import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

# For what a process does when it is told to end.
_SECONDS_TO_END = 5


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's options of tools/train_net.py, and ``--timeout``."""
    parser = default_argument_parser()
    parser.add_argument(
        "--timeout",
        type=float,
        default=30,
        help="minutes that a process waits for the others before it gives up (default 30)",
    )
    return parser


def launch_processes(main: Callable, args: argparse.Namespace) -> None:
    """Calls a function in ``--num-gpus`` processes of this machine; one suffices for itself.

    Args:
        main: gets ``args``. In more than one process it has to be importable.
        args: of :func:`argument_parser`.

    Raises:
        Exception: what the function raises; where one process dies or gives up, the others of this
            machine are ended and those of other machines fail when they next wait for it.
    """
    try:
        launch(
            _in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
            timeout=timedelta(minutes=args.timeout),
        )
    except BaseException:
        _end_children()
        raise


def _in_process(main: Callable, args: argparse.Namespace) -> None:
    """Ends the communication, too: PyTorch's threads for it abort a process that ends before."""
    main(args)
    if dist.is_initialized():
        # One process may still be writing what all have found.
        comm.synchronize()
        dist.destroy_process_group()


def _end_children() -> None:
    """Ends the processes that are left: one that waits for another does not notice Ctrl-C."""
    for end in (Process.terminate, Process.kill):
        children = active_children()
        for child in children:
            end(child)
        for child in children:
            child.join(_SECONDS_TO_END)
