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
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Callable, Optional

import cv2
import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from fvcore.nn import FlopCountAnalysis

from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.commands.benchmark_layers import (
    CONVOLUTION_FLOPS,
    IMAGE_SIZE,
    MAP_SIZE,
    HeatmapLossCase,
    decoding,
    heatmap_loss,
    machine,
    memory_of,
    plain_convolutions,
    pooling,
)
from centripetalnet.commands.measuring import (
    DTYPES,
    Row,
    detection,
    judged,
    median_seconds,
    peak_megabytes,
    table,
    training_batch,
)
from centripetalnet.data import CentripetalNetDatasetMapper, load_config
from centripetalnet.engine import Trainer
from centripetalnet.modeling import CentripetalNet, optimize_for_inference
from centripetalnet.modeling.precision import cpu_has_bfloat16

HG104, DEMO = "centripetal_hg104", "centripetal_mask_lite0"


def hourglass_104(**options) -> CentripetalNet:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.CENTRIPETALNET.CHANNELS_LAST", "True"]
    for key, value in options.items():
        opts += [f"MODEL.CENTRIPETALNET.{key}", str(value)]
    torch.manual_seed(0)
    return build_model(load_config(HG104, opts))


def training_step(model: CentripetalNet, precision: str = "float32") -> Callable:
    batch = training_batch(*IMAGE_SIZE)
    for p in model.train().parameters():
        p.grad = torch.zeros_like(p)

    def step():
        enabled = precision == "bfloat16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = sum(model(batch).values())
        loss.backward()

    return step


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
    for precision in list(DTYPES) if cpu_has_bfloat16() else ["float32"]:
        convolutions = plain_convolutions(DTYPES[precision], torch.channels_last)
        model = optimize_for_inference(trained, precision)
        if precision == "float32":
            flops = needed_flops(model)
            yield Row("inference of one image, needed", flops / 1e9, "GFLOP")
            # Of all heads; the gradients of inputs and of weights need as many each.
            forward_flops = needed_flops(trained)
            yield Row("training step, needed", 3 * forward_flops / 1e9, "GFLOP")
        with torch.no_grad():
            seconds = median_seconds(
                5, detect=detection(model, *IMAGE_SIZE), conv=convolutions["forward"]
            )
        part = f"inference {precision}, 511 x 511"
        yield Row(part, seconds["detect"], "s")
        share = flops / CONVOLUTION_FLOPS * seconds["conv"] / seconds["detect"] * 100
        yield judged(part, share, "% of a plain convolution's rate", ">= 80")
        seconds = median_seconds(3, step=training_step(trained, precision), **convolutions)
        step = seconds.pop("step")
        part = f"training step {precision}"
        yield Row(part, step, "s")
        share = forward_flops / CONVOLUTION_FLOPS * sum(seconds.values()) / step * 100
        yield judged(part, share, "% of plain convolutions' rate", ">= 80")


def checkpointing() -> Iterator[Row]:
    """Memory of a training step of Hourglass-104 beyond weights and gradients."""
    plain, checkpointed = memory_of("step"), memory_of("step_checkpointed")
    yield Row("memory of a training step", plain, "MB")
    yield Row("memory of a training step, checkpointing", checkpointed, "MB")
    share = checkpointed / plain * 100
    yield judged("checkpointing", share, "% of the memory without", "<= 45")


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
            cfg = load_config(DEMO, opts)
            model = build_model(cfg)
            CentripetalNetCheckpointer(model).load(weights)
            with contextlib.redirect_stdout(io.StringIO()):
                ap[precision] = Trainer.test(cfg, model)["bbox"]["AP"]
            yield Row(f"demo model, {precision}", ap[precision], "box AP")
    difference = abs(ap["bfloat16"] - ap["float32"])
    part = "demo model, bfloat16 and float32 differ by"
    yield judged(part, difference, "box AP", "<= 0.3")


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
    yield judged("mapper, 640 x 480 JPEG, one core", rate, "images/s", ">= 60")
    ratio = seconds["large"] / seconds["decode"]
    part = "mapper, 4000 x 3000 JPEG resized to 640 x 480"
    yield judged(part, ratio, "x a full decode", "<= 0.7")


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


MEMORY_CASES: dict[str, Callable[[], Callable]] = {
    "heatmap_loss": lambda: HeatmapLossCase().ours,
    "step": lambda: training_step(hourglass_104()),
    "step_checkpointed": lambda: training_step(hourglass_104(CHECKPOINT_ACTIVATIONS=True)),
}


def main(argv: Optional[Sequence[str]] = None) -> None:
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
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    if args.memory_of:
        print(peak_megabytes(MEMORY_CASES[args.memory_of]()))
        return

    output = os.path.abspath(args.output)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    # The folder of `make demo`.
    os.environ.setdefault("DETECTRON2_DATASETS", os.path.join(os.path.dirname(output), "datasets"))
    rows: list[Row] = []
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
    print(f"\n{table(rows)}\n\nresults  {output}")


if __name__ == "__main__":
    main()
