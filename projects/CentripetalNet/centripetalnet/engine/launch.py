"""The options of train_net.py, and the processes that they or torchrun ask for."""

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
from detectron2.utils.file_io import PathManager

from ..config import check_device, read_config
from ..io.errors import users_mistake

logger = logging.getLogger(__name__)

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
    # None is an option that was not given.
    parser.set_defaults(num_gpus=None, num_machines=None, machine_rank=None, dist_url=None)
    return parser


def launch_processes(main: Callable, args: argparse.Namespace) -> None:
    """Calls a function in ``--num-gpus`` processes of this machine, or in this process for one.

    In a process that torchrun started, calls it there, with ``resume`` after a restart.

    Args:
        main: is called with ``args``. For ``--num-gpus`` above 1 it has to be importable.
        args: of :func:`argument_parser`.

    Raises:
        ValueError: if ``MODEL.DEVICE`` is a GPU and there are not so many, or if an option
            contradicts torchrun.
        Exception: what the function raises. If one process dies or gives up, the others of this
            machine are ended, and those of other machines fail when they next wait for it.
    """
    args = _with_processes(args)
    cfg = read_config(args.config_file, args.opts)
    check_device(cfg.MODEL.DEVICE)
    on_gpus = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    if on_gpus:
        if args.num_gpus > torch.cuda.device_count():
            raise ValueError(
                f"--num-gpus or --nproc-per-node {args.num_gpus}: this machine has "
                f"{torch.cuda.device_count()} GPUs"
            )
    elif args.num_gpus * args.num_machines > 1:
        # Detectron2 has the processes communicate by NCCL, for GPUs only, where it sees a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        if dist.is_torchelastic_launched():
            _join_processes(args, on_gpus)
            args.resume = _resumes(args, cfg.OUTPUT_DIR)
            _in_process(main, args)
        else:
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


def _with_processes(args: argparse.Namespace) -> argparse.Namespace:
    """Completes the options that describe the processes: torchrun's values or Detectron2's."""
    names = ("num_gpus", "num_machines", "machine_rank", "dist_url")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if dist.is_torchelastic_launched():
        known = _processes_of_torchrun()
        for name, value in given.items():
            if value != known[name]:
                raise ValueError(
                    f"--{name.replace('_', '-')} {value}: under torchrun it is {known[name]}. "
                    "Leave the option out; torchrun's own options describe the processes."
                )
    else:
        parser = default_argument_parser()
        known = {name: parser.get_default(name) for name in names}
    return argparse.Namespace(**{**vars(args), **known, **given})


def _processes_of_torchrun() -> dict:
    env = os.environ
    machines, restarts = int(env["GROUP_WORLD_SIZE"]), int(env["TORCHELASTIC_MAX_RESTARTS"])
    if machines > 1 and restarts and env["TORCHELASTIC_USE_AGENT_STORE"] == "True":
        # Its store keeps the addresses of dead processes, and machines count restarts differently.
        raise ValueError(
            f"--max-restarts {restarts} on {machines} machines: processes cannot connect after a "
            "restart. Start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment "
            "and --rdzv-backend c10d."
        )
    return {
        "num_gpus": int(env["LOCAL_WORLD_SIZE"]),
        "num_machines": machines,
        "machine_rank": int(env["GROUP_RANK"]),
        "dist_url": f"tcp://{env['MASTER_ADDR']}:{env['MASTER_PORT']}",
    }


def _join_processes(args: argparse.Namespace, on_gpus: bool) -> None:
    """Joins the process group that torchrun describes in the environment."""
    if args.num_gpus * args.num_machines == 1:
        return
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(minutes=args.timeout)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    if args.num_machines == 1:
        # torchrun's store still has the addresses of the processes before a restart.
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    comm.create_local_process_group(args.num_gpus)
    comm.synchronize()


def _resumes(args: argparse.Namespace, output_dir: str) -> bool:
    """Whether to resume: with ``--resume``, and in a training that torchrun has restarted."""
    if args.resume or args.eval_only:
        return args.resume
    # A machine that only follows the restart of another one does not count it.
    if any(comm.all_gather(int(os.environ["TORCHELASTIC_RESTART_COUNT"]))):
        return True
    last = os.path.join(output_dir, "last_checkpoint")
    may_restart = int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0
    if may_restart and comm.is_main_process() and PathManager.isfile(last):
        logger.warning("Removing %s of an earlier training: a restart would resume it.", last)
        PathManager.rm(last)
    return False


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
