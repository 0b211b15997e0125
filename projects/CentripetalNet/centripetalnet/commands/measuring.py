"""Time and memory of calls, for the commands that measure."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Callable, Optional

import torch

from centripetalnet.modeling import CentripetalNet

FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Row:
    """One row of the table."""

    part: str
    value: float
    unit: str
    goal: str = ""
    met: Optional[bool] = None


def median_seconds(runs: int, **functions: Callable) -> dict[str, float]:
    """Median time of each function. They are called alternately, after one warm-up call."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_megabytes(function: Callable) -> float:
    """Peak memory of a call beyond the memory in use before it.

    Exact only in a process that returns freed memory to the system, see :func:`in_own_process`.
    """
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def in_own_process(module: str, *arguments: str) -> float:
    """The megabytes that a command prints, whose memory is that of a process of its own."""
    command = [sys.executable, "-m", f"centripetalnet.commands.{module}", *arguments]
    # Tensors get separate pages, which return to the system when the tensors are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return float(result.stdout.split()[-1])


def picture(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def detection(model: CentripetalNet, height: int, width: int) -> Callable:
    batch = [{"image": picture(height, width)}]

    @torch.no_grad()
    def detect():
        return model(batch)

    return detect
