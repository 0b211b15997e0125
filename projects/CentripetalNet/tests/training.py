"""What the tests of whole trainings share."""

import os
import signal
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
# Small pictures take longer with more threads, much longer where other tests run beside them.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# A model that was hardly trained finds boxes only where corners may point to about anywhere.
ANYWHERE = [
    *("MODEL.CENTRIPETALNET.CENTRAL_REGION_LARGE", "9.0"),
    *("MODEL.CENTRIPETALNET.CENTRAL_REGION_SMALL", "9.0"),
    *("MODEL.CENTRIPETALNET.MAX_CENTER_AREA", "9.0"),
]


def arguments(output, *opts, eval_only=False, resume=False, config_file=TINY):
    """Those of train_net.py, for ``engine.main``."""
    flags = [*(["--eval-only"] if eval_only else []), *(["--resume"] if resume else [])]
    args = ["--config-file", str(config_file), *flags, "OUTPUT_DIR", str(output), *map(str, opts)]
    return default_argument_parser().parse_args(args)


def run(*args, **environment):
    """A command of the project in a process of its own, to its end."""
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


def start(*args, **environment):
    """The same in the background, as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
        start_new_session=True,
        # A shell has what it runs in the background ignore Ctrl-C, and their children, too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def kill(process):
    """Ends a process of :func:`start` and all that it has started, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return "" if process.stderr.closed else process.communicate()[1]


def wait_for(condition, process):
    """Waits until something is true while a process of :func:`start` runs."""
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)
