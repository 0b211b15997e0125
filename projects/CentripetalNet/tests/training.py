"""Helpers for tests that run complete trainings."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from conftest import PROJECT
from detectron2.engine import default_argument_parser

TINY = PROJECT / "configs" / "quick_schedules" / "centripetal_tiny.yaml"
TINY_MASK = TINY.with_name("centripetal_mask_tiny.yaml")
TRAIN_FEW = Path(__file__).with_name("train_few.py")
# Small images are slower with more threads, much slower if other tests run in parallel.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Thresholds with which a hardly trained model finds boxes.
ANYWHERE = [
    *("MODEL.CENTRIPETALNET.CENTRAL_REGION_LARGE", "9.0"),
    *("MODEL.CENTRIPETALNET.CENTRAL_REGION_SMALL", "9.0"),
    *("MODEL.CENTRIPETALNET.MAX_CENTER_AREA", "9.0"),
]


def arguments(output, *opts, eval_only=False, resume=False, config_file=TINY):
    """Arguments of train_net.py, for ``engine.main``."""
    flags = [*(["--eval-only"] if eval_only else []), *(["--resume"] if resume else [])]
    args = ["--config-file", str(config_file), *flags, "OUTPUT_DIR", str(output), *map(str, opts)]
    return default_argument_parser().parse_args(args)


def run(*args, **environment):
    """Runs a command of the project in a separate process."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
    )


def train_few(output, *opts, flags=(), config_file=TINY):
    """Arguments of :func:`run` and :func:`start` for train_few.py."""
    return [TRAIN_FEW, "--config-file", config_file, *flags, "OUTPUT_DIR", output, *opts]


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(*args, **environment):
    """Starts it in the background, as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
        start_new_session=True,
        # Shells make background processes ignore SIGINT, which their children inherit.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def kill(process):
    """Kills a process of :func:`start` and its children; returns its standard error."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return "" if process.stderr.closed else process.communicate()[1]


def wait_for(condition, process):
    """Waits for a condition while a process of :func:`start` runs."""
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)
