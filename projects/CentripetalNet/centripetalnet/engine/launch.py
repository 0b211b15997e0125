"""The options of train_net.py, and the processes that they ask for."""

import argparse
import logging
import os
import traceback
from datetime import timedelta
from multiprocessing import active_children
from multiprocessing.process import BaseProcess as Process
from typing import Callable

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

from ..config import check_device, read_config
from ..io.errors import users_mistake

# Given to a process to end after a signal.
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
    """Calls a function in ``--num-gpus`` processes of this machine, or in this process for one.

    Args:
        main: is called with ``args``. For several processes it has to be importable.
        args: of :func:`argument_parser`.

    Raises:
        ValueError: if ``MODEL.DEVICE`` is a GPU and there are not so many.
        Exception: what the function raises. If one process dies or gives up, the others of this
            machine are ended, and those of other machines fail when they next wait for it.
    """
    device = read_config(args.config_file, args.opts).MODEL.DEVICE
    check_device(device)
    if torch.device(device).type == "cuda":
        if args.num_gpus > torch.cuda.device_count():
            raise ValueError(
                f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()} GPUs"
            )
    elif args.num_gpus * args.num_machines > 1:
        # Detectron2 has the processes communicate by NCCL, for GPUs only, where it sees a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
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


class _MistakesWithoutTraceback(logging.Filter):
    """For Detectron2's training loop, which logs every exception with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            mistake = users_mistake("".join(traceback.format_exception(*record.exc_info)))
            if mistake is not None:
                record.msg, record.args = f"{record.getMessage()} {mistake}", ()
                record.exc_info = None
        return True


def _in_process(main: Callable, args: argparse.Namespace) -> None:
    """Closes the process group at the end; PyTorch 2.14 aborts some processes otherwise."""
    logging.getLogger("detectron2.engine.train_loop").addFilter(_MistakesWithoutTraceback())
    main(args)
    if dist.is_initialized():
        # One process may still be writing results.
        comm.synchronize()
        dist.destroy_process_group()


def _end_children() -> None:
    """Ends the other processes: one that waits in a collective ignores Ctrl-C."""
    for end in (Process.terminate, Process.kill):
        children = active_children()
        for child in children:
            end(child)
        for child in children:
            child.join(_SECONDS_TO_END)
