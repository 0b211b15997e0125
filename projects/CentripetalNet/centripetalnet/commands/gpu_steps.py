"""The steps of `make gpu-check`, each run in a process of its own."""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple, Optional
from xml.etree import ElementTree

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor

from centripetalnet.commands.benchmark import DEMO
from centripetalnet.commands.benchmark_layers import DECODING, HeatmapLossCase, decoding_case
from centripetalnet.commands.measuring import (
    FORMATS,
    Row,
    detection,
    judged,
    peak_gibibytes,
    seconds_of,
    training_batch,
)
from centripetalnet.data import load_config
from centripetalnet.data.datasets import SilhouettesSpec, build_silhouettes
from centripetalnet.engine import Trainer
from centripetalnet.layers.extension import KERNEL_DEVICES
from centripetalnet.modeling import CentripetalNet, optimize_for_inference
from centripetalnet.modeling.precision import PRECISIONS
from centripetalnet.modeling.selection import SelectionOptions, select_detections

PROJECT = Path(__file__).resolve().parents[2]
SANITIZER = "compute-sanitizer"


class Scale(NamedTuple):
    """Where the steps run, and how large their inputs are."""

    device: str
    config: str
    size: tuple[int, int]  # of the images
    batches: tuple[int, ...]  # numbers of images in inference
    train_images: int
    train_steps: int  # in each precision, to compare them
    precisions: tuple[str, ...]  # besides float32
    maps: int  # images of the kernels' tensors: on a GPU more than its caches hold
    least_seconds: float  # of a measurement


ON_GPU = Scale(
    "cuda", "centripetal_hg104", (511, 511), (8, 1), 6, 30, ("bfloat16", "float16"), 32, 0.3
)
DRY = Scale("cpu", "centripetal_tiny", (63, 63), (1,), 1, 3, ("bfloat16",), 1, 0.01)


def require_kernels(scale: Scale) -> None:
    """PyTorch's operators, which replace missing kernels, would pass their tests, too."""
    for name in ("corner_pool", "gaussian_focal_loss"):
        if scale.device not in KERNEL_DEVICES[name]:
            raise RuntimeError(f"centripetalnet._C has no kernel of {name} for {scale.device}")


def run_tests(files: Sequence[str], cases: str, command: Sequence = (), **environment: str):
    """Runs tests by pytest, with a command before it. A failed one is an error, as is none."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "tests.xml")
        pytest = [sys.executable, "-m", "pytest", "-q", "-k", cases, "--junitxml", report]
        call = [*command, *pytest, *(f"tests/{x}" for x in files)]
        status = subprocess.run(call, cwd=PROJECT, env={**os.environ, **environment}).returncode
        if not os.path.isfile(report):
            raise RuntimeError(f"pytest ended with {status} and without a report")
        found = ElementTree.parse(report).getroot().findall(".//testcase")
    passed = sum(len(case) == 0 for case in found)
    yield Row("passed", passed, "tests")
    reasons = [x.get("message") for case in found for x in case.findall("skipped")]
    for reason in sorted(set(reasons)):
        yield Row(f"skipped: {reason}", reasons.count(reason), "tests")
    if status or not passed:
        raise RuntimeError(f"pytest ended with {status}, {passed} tests passed")


def build(scale: Scale) -> Iterator[Row]:
    # FORCE_CUDA makes a build without CUDA kernels an error.
    environment = {**os.environ, "FORCE_CUDA": "1"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=PROJECT, env=environment, check=True)
    yield from ()


def operators(scale: Scale) -> Iterator[Row]:
    require_kernels(scale)
    names = ("corner_pool", "gaussian_focal_loss", "soft_nms", "cross_star_deform_conv")
    files = [f"layers/test_{x}.py" for x in (*names, "operators_on_gpu")]
    short = "cpu and (opcheck or formula or gradcheck or takes)"
    yield from run_tests(files, "cuda or gpu" if scale is ON_GPU else short)


def trainer_of(scale: Scale, folder: str, precision: str, *opts) -> Trainer:
    """A trainer that gets the same batch in each step."""
    batch = training_batch(*scale.size, scale.train_images)

    class OnOneBatch(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return itertools.repeat(batch)

    opts = ["MODEL.DEVICE", scale.device, "OUTPUT_DIR", folder, "TEST.AUG.ENABLED", False, *opts]
    opts += ["SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.WARMUP_ITERS", 0, "SEED", 1]
    opts += ["DATASETS.TEST", ()]
    is_mixed = precision != "float32"
    opts += ["SOLVER.AMP.ENABLED", is_mixed, "SOLVER.AMP.PRECISION", precision if is_mixed else ""]
    torch.manual_seed(0)
    trainer = OnOneBatch(load_config(scale.config, opts))
    trainer.iter = 0
    return trainer


def amp(scale: Scale) -> Iterator[Row]:
    losses: dict[str, list[float]] = {}
    for precision in ("float32", *scale.precisions):
        with tempfile.TemporaryDirectory() as folder, EventStorage() as storage:
            trainer = trainer_of(scale, folder, precision)
            losses[precision] = []
            for trainer.iter in range(scale.train_steps):
                trainer.run_step()
                losses[precision].append(storage.latest()["total_loss"][0])
        first, last = losses[precision][0], statistics.mean(losses[precision][-3:])
        if precision != "float32":
            difference = abs(first / losses["float32"][0] - 1) * 100
            yield judged(f"{precision}, first loss and float32's", difference, "%", "<= 5")
        part = f"{precision}, loss after {scale.train_steps} steps"
        yield judged(part, last / first * 100, "% of the first", "<= 50", scale is ON_GPU)
        scaler = trainer._trainer.grad_scaler
        if scaler.is_enabled():
            yield judged(f"{precision}, gradient scale", scaler.get_scale(), "", ">= 1")
    yield from run_tests(["engine/test_step.py"], scale.device)


def demo(scale: Scale) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, PROJECT / "train_net.py", "--config-file", DEMO]
        command += ["OUTPUT_DIR", folder, "MODEL.DEVICE", scale.device]
        if scale is DRY:
            images = os.path.join(folder, "images")
            build_silhouettes(images, SilhouettesSpec(num_train=8, num_val=4))
            few = [[x, f"{images}/annotations/{x}.json", f"{images}/{x}"] for x in ("train", "val")]
            command += ["DATASETS.COCO_FORMAT", str(few), "SOLVER.MAX_ITER", "8"]
            command += ["DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('val',)"]
        subprocess.run(command, check=True)
        lines = Path(folder, "metrics.json").read_text().splitlines()
    figures = {key: value for x in lines for key, value in json.loads(x).items()}
    # After training on a CPU: 81.3 and 64.2.
    for task, goal in (("bbox", ">= 78"), ("segm", ">= 60")):
        yield judged(f"{task}, validation", figures[f"{task}/AP"], "AP", goal, scale is ON_GPU)
        yield Row(f"{task}, with mirror images", figures[f"{task}_TTA/AP"], "AP")
    yield Row("iteration of 8 images", figures["time"] * 1e3, "ms")


def compile_parts(model: CentripetalNet, scale: Scale) -> None:
    """Compiles backbone, corner pooling and heatmaps, nearly all FLOPs of inference."""
    torch._dynamo.reset()
    branches = (model.heads[-1].tl, model.heads[-1].br)
    backend = "inductor" if scale is ON_GPU else "aot_eager"
    for part in (model.backbone, *(x for y in branches for x in (y.pooling, y.heatmap))):
        part.compile(fullgraph=True, dynamic=False, backend=backend)


def inference(scale: Scale, is_compiled: bool = False) -> Iterator[Row]:
    has_goal = scale is ON_GPU and torch.cuda.get_device_capability() >= (9, 0)
    torch.manual_seed(0)
    trained = build_model(load_config(scale.config, ["MODEL.DEVICE", scale.device]))
    tf32 = ("TF32",) if scale is ON_GPU else ()
    for name in (*scale.precisions, *tf32, "float32"):
        torch.backends.cudnn.allow_tf32 = name == "TF32"
        precision = "float32" if name == "TF32" else name
        model = optimize_for_inference(trained.to(scale.device), precision)
        trained.cpu()
        if is_compiled:
            compile_parts(model, scale)
        for count in scale.batches:
            part = f"{name}, batch {count}" + (", compiled" if is_compiled else "")
            detect = detection(model, *scale.size, count)
            start = time.perf_counter()
            detect()
            if is_compiled:
                yield Row(f"{part}, compilation", time.perf_counter() - start, "s")
            memory = peak_gibibytes(detect, scale.device)
            rate = count / seconds_of(detect, scale.least_seconds)
            if (name, count) == ("bfloat16", 8):
                yield judged(part, rate, "images/s", ">= 100", has_goal)
            else:
                yield Row(part, rate, "images/s")
            yield Row(part, memory, "GiB")


def training(scale: Scale) -> Iterator[Row]:
    for precision, saves in itertools.product(("float32", *scale.precisions), (False, True)):
        part = f"{precision}, batch {scale.train_images}"
        part += ", activation checkpointing" if saves else ""
        with tempfile.TemporaryDirectory() as folder, EventStorage():
            opts = ["MODEL.CENTRIPETALNET.CHECKPOINT_ACTIVATIONS", saves]
            trainer = trainer_of(scale, folder, precision, *opts)
            # The optimizer allocates its state.
            trainer.run_step()
            memory = peak_gibibytes(trainer.run_step, scale.device)
            yield Row(part, seconds_of(trainer.run_step, scale.least_seconds) * 1e3, "ms")
            if precision == "float32" and not saves:
                yield Row(part, memory, "GiB")
            else:
                yield judged(part, memory, "GiB", "<= 8", scale is ON_GPU)
            # Before the next one is built.
            del trainer


def kernel_calls(x: Tensor, gradient: Tensor, logits: Tensor, bumps: tuple) -> Iterator[tuple]:
    """Name, call, and bytes that it has to read and write."""
    operator = torch.ops.centripetalnet
    size, heatmap_size = (y.numel() * y.element_size() for y in (x, logits))
    arguments, one = (logits, *bumps, 2.0, 4.0), torch.ones((), device=x.device)
    yield "heatmap loss", partial(operator.gaussian_focal_loss, *arguments), heatmap_size
    backward = partial(operator.gaussian_focal_loss_backward, one, *arguments)
    yield "heatmap loss, backward", backward, 2 * heatmap_size
    for i, direction in enumerate(("top", "bottom", "left", "right")):
        name = f"corner pooling, {direction}"
        yield name, partial(operator.corner_pool, x, i), 2 * size
        backward = partial(operator.corner_pool_backward, gradient, x, i)
        yield f"{name}, backward", backward, 3 * size


@torch.no_grad()
def kernels(scale: Scale) -> Iterator[Row]:
    require_kernels(scale)
    decode = decoding_case(scale.device)
    candidates, _ = decode()
    options = SelectionOptions()
    calls = {DECODING: decode, "soft-NMS": partial(select_detections, candidates, options)}
    for name, call in calls.items():
        milliseconds = seconds_of(call, scale.least_seconds) * 1e3
        yield judged(name, milliseconds, "ms", "<= 3", scale is ON_GPU)
    case = HeatmapLossCase(num_images=scale.maps, device=scale.device)
    bumps = case.targets()[0].bumps, case.targets()[0].plane_start
    maps = torch.randn(2, scale.maps, 128, 128, 128, device=scale.device)
    for precision, layout in itertools.product(("float32", *scale.precisions), FORMATS):
        x, gradient, logits = (
            tensor.detach().to(PRECISIONS[precision], memory_format=FORMATS[layout], copy=True)
            for tensor in (*maps, case.logits[0])
        )
        size = x.numel() * x.element_size()
        rate = 2 * size / seconds_of(partial(gradient.clone().copy_, x), scale.least_seconds)
        yield Row(f"copy of {size / 2**20:.0f} MiB, {precision}, {layout}", rate / 1e9, "GB/s")
        for name, call, moved in kernel_calls(x, gradient, logits, bumps):
            part = f"{name}, {precision}, {layout}"
            share = moved / seconds_of(call, scale.least_seconds) / rate * 100
            yield judged(part, share, "% of the copy's rate", ">= 50", scale is ON_GPU)


def sanitizer(scale: Scale) -> Iterator[Row]:
    require_kernels(scale)
    files = ["layers/test_corner_pool.py", "layers/test_gaussian_focal_loss.py"]
    for tool in ("memcheck", "racecheck"):
        command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
        # Part of the mangled names of this project's kernels.
        command += ["--kernel-name", "kernel_substring=centripetalnet"]
        # PyTorch's allocator would hide accesses beyond a tensor.
        own_memory = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        for row in run_tests(files, "cuda and (lines or formula)", command, **own_memory):
            row.part = f"{tool}, {row.part}"
            yield row


def tests_of(file: str, scale: Scale) -> Iterator[Row]:
    return run_tests([file], scale.device)


# Function, and seconds that it may take: about three times what is expected.
STEPS: dict[str, tuple[Callable[[Scale], Iterator[Row]], int]] = {
    "build": (build, 400),
    "operators": (operators, 240),
    "golden_model": (partial(tests_of, "modeling/test_golden_model.py"), 90),
    "amp": (amp, 120),
    "demo": (demo, 300),
    "inference": (inference, 120),
    "compiled_inference": (partial(inference, is_compiled=True), 400),
    "training": (training, 120),
    "kernels": (kernels, 120),
    "several_gpus": (partial(tests_of, "test_distributed.py"), 180),
    "sanitizer": (sanitizer, 180),
    "synchronisation": (partial(tests_of, "modeling/test_synchronisations.py"), 60),
}


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--rows", required=True, help="file for the rows, one in JSON a line")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    # gpu_check.py sets it for this process alone: it costs time.
    os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
    with open(args.rows, "w", encoding="utf-8") as file:
        for row in STEPS[args.step][0](DRY if args.dry_run else ON_GPU):
            # At once, as the step may hang later.
            print(json.dumps(asdict(row)), file=file, flush=True)


if __name__ == "__main__":
    main()
