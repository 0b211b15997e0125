"""Time and memory of calls, for the commands that measure."""

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable, Optional

import torch
from detectron2.structures import Boxes, Instances
from tabulate import tabulate

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


def judged(part: str, value: float, unit: str, goal: str, applies: bool = True) -> Row:
    """A row whose goal, such as ">= 5" or "<= 5", is compared with the value if it applies."""
    sign, limit = goal.split()
    met = value >= float(limit) if sign == ">=" else value <= float(limit)
    return Row(part, value, unit, goal, met if applies else None)


def table(rows: Iterable[Row]) -> str:
    """The rows as a table in Markdown."""
    verdict = {None: "", True: "met", False: "missed"}
    return tabulate(
        [(x.part, f"{x.value:.4g}", x.unit, x.goal, verdict[x.met]) for x in rows],
        headers=["part", "measured", "unit", "goal", ""],
        tablefmt="github",
        disable_numparse=True,
    )


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


def seconds_of(function: Callable, least_seconds: float) -> float:
    """Median time of a call on any device, from calls that take this time together."""
    # Its import prints a line where there is a CUDA toolkit and no GPU.
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=least_seconds).median


def peak_gibibytes(function: Callable, device: str) -> float:
    """Peak memory of a call: on a GPU of all tensors, on the CPU see :func:`peak_megabytes`."""
    if device == "cpu":
        return peak_megabytes(function) / 2**10
    # What earlier calls have left in circles of references.
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() / 2**30


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


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def training_batch(height: int, width: int, num_images: int = 1) -> list[dict]:
    """Images of noise, each with the same three boxes of the first class."""
    relative = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.0, 0.0, 0.8, 1.0], [0.6, 0.4, 0.7, 0.5]])
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(relative * torch.tensor([width, height, width, height])),
        gt_classes=torch.zeros(len(relative), dtype=torch.int64),
    )
    return [
        {"image": picture(height, width, seed), "instances": instances}
        for seed in range(num_images)
    ]


def detection(model: CentripetalNet, height: int, width: int, num_images: int = 1) -> Callable:
    batch = [{"image": picture(height, width).to(model.device)}] * num_images

    @torch.no_grad()
    def detect():
        return model(batch)

    return detect
