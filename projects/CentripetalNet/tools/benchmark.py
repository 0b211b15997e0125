#!/usr/bin/env python3
"""Measures time and memory of the parts on the CPU and compares them with goals (`make bench`).

Times of different machines are not comparable, ratios within one run are. The functions of a ratio
are measured alternately, and the table contains the rates of the machine.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Callable, Dict, Iterator, List, Optional

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate

from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.data import CentripetalNetDatasetMapper, load_config
from centripetalnet.engine import Trainer
from centripetalnet.layers import corner_pool, gaussian_focal_loss, render_bumps
from centripetalnet.modeling import CentripetalNet, optimize_for_inference
from centripetalnet.modeling.corner_matching import (
    MatchingOptions,
    SelectionOptions,
    best_candidates,
    find_peaks,
    locate_corners,
    match_corners,
    select_detections,
)
from centripetalnet.modeling.corner_targets import corner_targets
from centripetalnet.modeling.precision import cpu_has_bfloat16

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HG104 = os.path.join(PROJECT, "configs", "centripetal_hg104.yaml")
TINY = os.path.join(PROJECT, "configs", "quick_schedules", "centripetal_mask_tiny.yaml")
FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
IMAGE_SIZE = (511, 511)
NUM_IMAGES, NUM_CLASSES, MAP_SIZE = 6, 80, (128, 128)


@dataclass
class Row:
    """One row of the table."""

    part: str
    value: float
    unit: str
    goal: str = ""
    met: Optional[bool] = None


def median_seconds(runs: int, **functions: Callable) -> Dict[str, float]:
    """Median time of each function. They are called alternately, after one warm-up call."""
    for function in functions.values():
        function()
    seconds: Dict[str, List[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_megabytes(function: Callable) -> float:
    """Peak memory of a call beyond the memory in use before it.

    Exact only in a process that returns freed memory to the system, see :func:`memory_of`.
    """
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def memory_of(case: str) -> float:
    """Peak megabytes of one of ``MEMORY_CASES``, measured in a separate process."""
    command = [sys.executable, os.path.abspath(__file__), "--threads", str(torch.get_num_threads())]
    # Tensors get separate pages, which return to the system when the tensors are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(
        [*command, "--memory-of", case], env=environment, stdout=subprocess.PIPE, check=True
    )
    return float(result.stdout.split()[-1])


# ------------------------------------------------------------------------------------ the machine


def plain_convolution(dtype: torch.dtype, memory_format: torch.memory_format) -> Callable:
    x = torch.randn(1, 256, *MAP_SIZE).to(dtype, memory_format=memory_format)
    weight = torch.randn(256, 256, 3, 3).to(dtype, memory_format=memory_format)
    return lambda: F.conv2d(x, weight, padding=1)


def weight_gradient(dtype: torch.dtype, memory_format: torch.memory_format) -> Callable:
    x, grad = (
        torch.randn(1, 256, *MAP_SIZE).to(dtype, memory_format=memory_format) for _ in range(2)
    )
    weight = torch.randn(256, 256, 3, 3).to(dtype, memory_format=memory_format)
    ones, zeros = [1, 1], [0, 0]
    options = (None, ones, ones, ones, False, zeros, 1, [False, True, False])
    return lambda: torch.ops.aten.convolution_backward(grad, x, weight, *options)


CONVOLUTION_FLOPS = 2 * 9 * 256 * 256 * MAP_SIZE[0] * MAP_SIZE[1]


@torch.no_grad()
def machine() -> Iterator[Row]:
    """Rates of plain operations on this machine."""
    for name, dtype in DTYPES.items():
        a, b = torch.randn(2, 2048, 2048).to(dtype)
        seconds = median_seconds(9, product=lambda a=a, b=b: a @ b)["product"]
        yield Row(f"matrix product, {name}", 2 * 2048**3 / seconds / 1e9, "GFLOP/s")
    x = torch.randn(NUM_IMAGES, 128, *MAP_SIZE)
    y = torch.empty_like(x)
    seconds = median_seconds(15, clone=x.clone, copy=lambda: y.copy_(x))
    for name in ("copy", "clone"):
        rate = x.numel() * x.element_size() / seconds[name] / 1e9
        yield Row(f"{name} of 50 MB, float32", rate, "GB/s")
    for name, dtype in DTYPES.items():
        for layout, memory_format in FORMATS.items():
            seconds = median_seconds(9, conv=plain_convolution(dtype, memory_format))["conv"]
            part = f"convolution 3x3, 256 channels, {name}, {layout}"
            yield Row(part, CONVOLUTION_FLOPS / seconds / 1e9, "GFLOP/s")
            seconds = median_seconds(9, grad=weight_gradient(dtype, memory_format))["grad"]
            yield Row(f"{part}, weight gradient", CONVOLUTION_FLOPS / seconds / 1e9, "GFLOP/s")


# ----------------------------------------------------------------------------------------- layers


@torch.no_grad()
def pooling() -> Iterator[Row]:
    """Corner pooling against copies of the same tensor."""
    for name, dtype in DTYPES.items():
        for layout, memory_format in FORMATS.items():
            x, grad = (
                torch.randn(NUM_IMAGES, 128, *MAP_SIZE).to(dtype, memory_format=memory_format)
                for _ in range(2)
            )
            warm = torch.empty_like(x)
            for index, direction in enumerate(("top", "bottom", "left", "right")):
                seconds = median_seconds(
                    15,
                    clone=x.clone,
                    copy=lambda warm=warm, x=x: warm.copy_(x),
                    forward=lambda x=x, direction=direction: corner_pool(x, direction),
                    backward=lambda grad=grad, x=x, index=index: (
                        torch.ops.centripetalnet.corner_pool_backward(grad, x, index)
                    ),
                )
                for step, limit in (("forward", 1.5), ("backward", 3.0)):
                    ratio = seconds[step] / seconds["clone"]
                    to_copy = seconds[step] / seconds["copy"]
                    part = f"corner pooling {step}, {direction}, {name}, {layout}"
                    unit = f"x clone ({to_copy:.1f} x copy)"
                    yield Row(part, ratio, unit, f"<= {limit}", ratio <= limit)


class HeatmapLossCase:
    """Targets and heatmap losses of two stacks, with this project's operator and dense maps."""

    def __init__(self, boxes_per_image: int = 8):
        generator = torch.Generator().manual_seed(0)
        count = NUM_IMAGES * boxes_per_image
        corner = torch.rand(count, 2, generator=generator) * 300
        size = torch.rand(count, 2, generator=generator) * 200 + 8
        self.boxes = torch.cat((corner, corner + size), dim=1)
        self.classes = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        self.image_index = torch.arange(NUM_IMAGES).repeat_interleave(boxes_per_image)
        shape = (NUM_IMAGES, NUM_CLASSES, *MAP_SIZE)
        # Two corners times two stacks.
        self.logits = [
            (torch.randn(shape, generator=generator) - 2.19).requires_grad_() for _ in range(4)
        ]

    def targets(self):
        numbers = (NUM_IMAGES, NUM_CLASSES, IMAGE_SIZE, MAP_SIZE)
        targets = corner_targets(self.boxes, self.classes, self.image_index, *numbers)
        return [targets.tl.heatmap, targets.br.heatmap] * 2

    def _backward(self, losses) -> None:
        for logits in self.logits:
            logits.grad = None
        sum(losses).backward()

    def ours(self) -> None:
        self._backward(
            gaussian_focal_loss(logits, target.bumps, target.plane_start)
            / target.num_positive.clamp(min=1)
            for logits, target in zip(self.logits, self.targets())
        )

    def plain(self) -> None:
        tl, br = (render_bumps(x.bumps, tuple(self.logits[0].shape)) for x in self.targets()[:2])
        losses = []
        for logits, target in zip(self.logits, (tl, br, tl, br)):
            p, positive = logits.sigmoid().clamp(1e-12, 1 - 1e-7), target.eq(1)
            loss = -p.log() * (1 - p).square() * positive
            loss = loss - (1 - p).log() * p.square() * (1 - target).pow(4) * ~positive
            losses.append(loss.sum() / positive.sum().clamp(min=1))
        self._backward(losses)

    def megabytes(self) -> float:
        return sum(x.numel() * x.element_size() for x in self.logits) / 2**20


def heatmap_loss() -> Iterator[Row]:
    """Targets and heatmap loss, forward and backward."""
    case = HeatmapLossCase()
    seconds = median_seconds(5, ours=case.ours, plain=case.plain)
    part = "targets and heatmap loss, forward and backward"
    yield Row(part, seconds["ours"] * 1e3, "ms")
    ratio = seconds["plain"] / seconds["ours"]
    yield Row(part, ratio, "x as fast as dense targets", ">= 5", ratio >= 5)
    ratio = memory_of("heatmap_loss") / case.megabytes()
    yield Row(f"{part}, memory", ratio, "x the logits", "<= 1.5", ratio <= 1.5)


@torch.no_grad()
def decoding() -> Iterator[Row]:
    """Decoding the heatmaps and shifts of one image, with 1,000 candidates for soft-NMS."""
    matching, selection = MatchingOptions(), SelectionOptions()
    center, corners = 60, {"tl": (20, +1), "br": (80, -1)}
    logits = torch.randn(2, 1, NUM_CLASSES, *MAP_SIZE, generator=torch.Generator().manual_seed(0))
    # The memory format of the inference model.
    logits = [(x - 12).contiguous(memory_format=torch.channels_last) for x in logits]
    for heatmap, (first, _) in zip(logits, corners.values()):
        # A hundred corners of one class that point to one centre.
        heatmap[0, 0, first : first + 20 : 2, first : first + 20 : 2] += 12

    def decode():
        found = []
        for heatmap, (_, inwards) in zip(logits, corners.values()):
            peaks = find_peaks(heatmap, matching)
            cell = torch.stack((peaks.cell % MAP_SIZE[1], peaks.cell // MAP_SIZE[1]), dim=-1)
            shift = (inwards * (center - cell)).clamp(min=1).float().log()
            found.append(locate_corners(peaks, shift * 0, shift, inwards, MAP_SIZE, IMAGE_SIZE))
        candidates = match_corners(*found, torch.zeros(1, 2), matching)
        candidates = best_candidates(candidates, selection.max_candidates)
        return candidates, select_detections(candidates, selection)

    candidates, _ = decode()
    count = int((candidates.scores >= 0).sum())
    if count != selection.max_candidates:
        raise RuntimeError(f"the case has {count} candidates, not {selection.max_candidates}")
    milliseconds = median_seconds(21, decode=decode)["decode"] * 1e3
    part = "decoding and soft-NMS, 80 classes, 1,000 candidates"
    yield Row(part, milliseconds, "ms", "<= 8", milliseconds <= 8)


# ------------------------------------------------------------------------------------ whole model


def hourglass_104(**options) -> CentripetalNet:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.CENTRIPETALNET.CHANNELS_LAST", "True"]
    for key, value in options.items():
        opts += [f"MODEL.CENTRIPETALNET.{key}", str(value)]
    torch.manual_seed(0)
    return build_model(load_config(HG104, opts))


def training_batch() -> List[dict]:
    boxes = torch.tensor([[50.0, 60, 200, 220], [10, 10, 400, 500], [300, 200, 340, 260]])
    instances = Instances(IMAGE_SIZE, gt_boxes=Boxes(boxes), gt_classes=torch.tensor([1, 2, 3]))
    return [{"image": picture(*IMAGE_SIZE), "instances": instances}]


def picture(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def training_step(model: CentripetalNet, precision: str = "float32") -> Callable:
    batch = training_batch()
    for p in model.train().parameters():
        p.grad = torch.zeros_like(p)

    def step():
        enabled = precision == "bfloat16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = sum(model(batch).values())
        loss.backward()

    return step


def detection(model: CentripetalNet, height: int, width: int) -> Callable:
    batch = [{"image": picture(height, width)}]

    @torch.no_grad()
    def detect():
        return model(batch)

    return detect


@torch.no_grad()
def needed_flops(model: CentripetalNet) -> float:
    """FLOPs of the backbone and of the heatmaps. Shifts at a hundred cells are neglected."""
    dtype = next(model.backbone.parameters()).dtype
    feature = torch.zeros(1, 256, *MAP_SIZE, dtype=dtype)
    parts = [(model.backbone, torch.zeros(1, 3, *IMAGE_SIZE, dtype=dtype))]
    for head in model.heads:
        for branch in (head.tl, head.br):
            parts += [(branch.pooling, feature), (branch.heatmap, feature)]
    total = 0
    for module, x in parts:
        analysis = FlopCountAnalysis(module, x).unsupported_ops_warnings(False)
        # fvcore counts a multiply-add as one.
        total += 2 * analysis.total()
    return total


def whole_model() -> Iterator[Row]:
    """Hourglass-104 on one image: inference and a training step, in both precisions."""
    trained = hourglass_104()
    precisions = list(DTYPES) if cpu_has_bfloat16() else ["float32"]
    inference = {}
    for precision in precisions:
        model = optimize_for_inference(trained, precision)
        functions = {
            "conv": plain_convolution(DTYPES[precision], torch.channels_last),
            "detect": detection(model, *IMAGE_SIZE),
        }
        if precision == "float32":
            flops = needed_flops(model)
            yield Row("inference of one image, needed", flops / 1e9, "GFLOP")
        with torch.no_grad():
            seconds = median_seconds(5, **functions)
        inference[precision] = seconds["detect"]
        yield Row(f"inference {precision}, 511 x 511", seconds["detect"], "s")
        share = flops / seconds["detect"] / (CONVOLUTION_FLOPS / seconds["conv"]) * 100
        goal = (">= 75", share >= 75) if precision == "float32" else ("", None)
        yield Row(f"inference {precision}, FLOP rate", share, "% of a plain convolution", *goal)
    if "bfloat16" in precisions:
        ratio = inference["float32"] / inference["bfloat16"]
        yield Row("inference bfloat16", ratio, "x as fast as float32", ">= 2.5", ratio >= 2.5)
    # The gradients of inputs and of weights cost a forward pass each. All heads are trained.
    ratio = 3 * needed_flops(trained) / flops
    yield Row("training step, needed", ratio, "x the FLOPs of inference")
    for precision in precisions:
        functions = {
            "step": training_step(trained, precision),
            "detect": detection(optimize_for_inference(trained, precision), *IMAGE_SIZE),
        }
        seconds = median_seconds(3, **functions)
        yield Row(f"training step {precision}", seconds["step"], "s")
        ratio = seconds["step"] / seconds["detect"]
        yield Row(f"training step {precision}", ratio, "x inference", "<= 3.5", ratio <= 3.5)


def checkpointing() -> Iterator[Row]:
    """Memory of a training step of Hourglass-104 beyond weights and gradients."""
    plain, checkpointed = memory_of("step"), memory_of("step_checkpointed")
    yield Row("memory of a training step", plain, "MB")
    yield Row("memory of a training step, checkpointing", checkpointed, "MB")
    share = checkpointed / plain * 100
    yield Row("checkpointing", share, "% of the memory without", "<= 45", share <= 45)


def average_precision(weights: str) -> Iterator[Row]:
    """Box AP of the demo's model in float32 and bfloat16."""
    if not cpu_has_bfloat16():
        return
    if not os.path.isfile(weights):
        raise FileNotFoundError(f"no checkpoint {weights!r}. Run `make demo`, or give --weights.")
    ap = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in DTYPES:
            opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", folder, "TEST.PRECISION", precision]
            cfg = load_config(TINY, opts)
            model = build_model(cfg)
            CentripetalNetCheckpointer(model).load(weights)
            with contextlib.redirect_stdout(io.StringIO()):
                ap[precision] = Trainer.test(cfg, model)["bbox"]["AP"]
            yield Row(f"demo model, {precision}", ap[precision], "box AP")
    difference = abs(ap["bfloat16"] - ap["float32"])
    part = "demo model, bfloat16 and float32 differ by"
    yield Row(part, difference, "box AP", "<= 0.3", difference <= 0.3)


def write_jpeg(folder: str, width: int, height: int) -> dict:
    """Writes a textured JPEG and returns its record with eight boxes."""
    generator = np.random.default_rng(0)
    pixels = cv2.resize(
        generator.integers(0, 256, (24, 32, 3)).astype(np.uint8),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    noise = generator.normal(0, 12, (480, 640, 3))
    pixels = pixels + np.resize(noise, pixels.shape)
    file_name = os.path.join(folder, f"{width}.jpg")
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    cv2.imwrite(file_name, pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
    annotations = [
        {"bbox": [x, y, 50.0, 60.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
        for x, y in generator.integers(0, 400, (8, 2)).tolist()
    ]
    record = {"file_name": file_name, "height": height, "width": width, "image_id": 1}
    return {**record, "annotations": annotations}


def mapper() -> Iterator[Row]:
    """Conversion of JPEGs to training samples: one of 640 x 480, and a photograph."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    many = range(40)
    with tempfile.TemporaryDirectory() as folder:
        small, large = write_jpeg(folder, 640, 480), write_jpeg(folder, 4000, 3000)
        opts = ["MODEL.DEVICE", "cpu"]
        load = CentripetalNetDatasetMapper(load_config(HG104, opts), True)
        opts += ["INPUT.MIN_SIZE_TRAIN", (480,), "INPUT.MAX_SIZE_TRAIN", 640]
        resize = CentripetalNetDatasetMapper(load_config(HG104, opts), True)
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        np.random.seed(0)
        seconds = median_seconds(
            7,
            small=lambda: [load(small) for _ in many],
            large=lambda: resize(large),
            decode=lambda: read_image(large["file_name"], "RGB"),
        )
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    rate = len(many) / seconds["small"]
    yield Row("mapper, 640 x 480 JPEG, one core", rate, "images/s", ">= 60", rate >= 60)
    ratio = seconds["large"] / seconds["decode"]
    part = "mapper, 4000 x 3000 JPEG resized to 640 x 480"
    yield Row(part, ratio, "x a full decode", "<= 0.7", ratio <= 0.7)


def growth() -> Iterator[Row]:
    """Time for different image sizes and numbers of boxes."""
    model = optimize_for_inference(hourglass_104())
    for height, width in ((255, 255), (511, 511), (767, 767), (800, 1333), (1333, 1333)):
        seconds = median_seconds(3, detect=detection(model, height, width))["detect"]
        canvas = (height | model.canvas_bits) * (width | model.canvas_bits) / 1e6
        yield Row(f"inference float32, {height} x {width}", seconds, "s")
        yield Row(f"inference float32, {height} x {width}", seconds / canvas, "s/megapixel")
    for count in (1, 8, 50, 200, 500):
        case = HeatmapLossCase(count)
        seconds = median_seconds(5, targets=case.targets, ours=case.ours)
        part = f"{count} boxes per image, 6 images"
        yield Row(f"targets, {part}", seconds["targets"] * 1e3, "ms")
        yield Row(f"targets and heatmap loss, {part}", seconds["ours"] * 1e3, "ms")


MEMORY_CASES: Dict[str, Callable[[], Callable]] = {
    "heatmap_loss": lambda: HeatmapLossCase().ours,
    "step": lambda: training_step(hourglass_104()),
    "step_checkpointed": lambda: training_step(hourglass_104(CHECKPOINT_ACTIVATIONS=True)),
}


def main() -> None:
    parts = {
        "machine": machine,
        "pooling": pooling,
        "heatmap_loss": heatmap_loss,
        "decoding": decoding,
        "whole_model": whole_model,
        "checkpointing": checkpointing,
        "average_precision": lambda: average_precision(args.weights),
        "mapper": mapper,
        "growth": growth,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/benchmark.json", help="results as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument(
        "--weights",
        default="output/demo/training/model_final.pth",
        help="checkpoint of the demo's model, for its AP in float32 and bfloat16",
    )
    parser.add_argument("--memory-of", choices=list(MEMORY_CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    if args.memory_of:
        print(peak_megabytes(MEMORY_CASES[args.memory_of]()))
        return

    output = os.path.abspath(args.output)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    # The folder of `make demo`.
    os.environ.setdefault("DETECTRON2_DATASETS", os.path.join(os.path.dirname(output), "datasets"))
    rows: List[Row] = []
    for name in args.only:
        print(f"{name} ...", flush=True)
        rows += parts[name]()
        with open(output, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "torch": torch.__version__,
                    "threads": args.threads,
                    "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                    "rows": [asdict(row) for row in rows],
                },
                file,
                indent=2,
            )
    verdict = {None: "", True: "met", False: "missed"}
    print()
    print(
        tabulate(
            [(x.part, f"{x.value:.4g}", x.unit, x.goal, verdict[x.met]) for x in rows],
            headers=["part", "measured", "unit", "goal", ""],
            tablefmt="github",
            disable_numparse=True,
        )
    )
    print(f"\nresults  {output}")


if __name__ == "__main__":
    main()
