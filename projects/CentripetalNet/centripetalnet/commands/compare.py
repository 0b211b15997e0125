"""Measures size, speed and training memory of the detectors of several configs on the CPU.

Detectors are measured without masks, speeds alternately and at 640 x 480 pixels. Training memory is
the peak of one step in float32 with the images of one process, with weights, gradients and
optimizer.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from typing import Callable, Optional

import torch
from detectron2.modeling import build_model
from tabulate import tabulate

from centripetalnet import export
from centripetalnet.commands.measuring import (
    DTYPES,
    detection,
    in_own_process,
    median_seconds,
    peak_megabytes,
    picture,
    training_batch,
)
from centripetalnet.data import load_config
from centripetalnet.engine.solver import build_optimizer
from centripetalnet.modeling import optimize_for_inference
from centripetalnet.modeling.analysis import analyze

IMAGE_SIZE = (480, 640)
# SyncBN trains on GPUs only; it needs as much memory.
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CENTRIPETALNET.NORM", "BN", "MODEL.MASK_ON", False]


def images_per_process(cfg) -> int:
    return cfg.SOLVER.IMS_PER_BATCH // max(cfg.SOLVER.REFERENCE_WORLD_SIZE, 1)


def training_megabytes(config: str) -> float:
    """Peak memory of a training step, measured in this process."""
    cfg = load_config(config, OPTS)
    height, width = cfg.INPUT.CENTER_CROP_PAD.SIZE

    def train() -> None:
        model = build_model(cfg).train()
        optimizer = build_optimizer(cfg, model)
        batch = training_batch(height, width, images_per_process(cfg))
        sum(model(batch).values()).backward()
        optimizer.step()

    return peak_megabytes(train)


def onnx_detection(model, threads: int) -> Callable:
    """A call of the exported detector in onnxruntime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        export.export_onnx(model, path, {}, opset=17)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = picture(*IMAGE_SIZE).float().numpy()[None]
    return lambda: session.run(None, {"image": image})


def measured(config: str, threads: int, runs: int) -> list[str]:
    """The row of a config."""
    cfg = load_config(config, OPTS)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    flops = analyze(model, IMAGE_SIZE)[0].total()
    functions: dict[str, Callable] = {
        name: detection(optimize_for_inference(model, name), *IMAGE_SIZE) for name in DTYPES
    }
    functions["onnxruntime"] = onnx_detection(model, threads)
    rates = [1 / x for x in median_seconds(runs, **functions).values()]
    megabytes = in_own_process("compare", "--memory-of", config)
    return [
        os.path.splitext(os.path.basename(config))[0],
        f"{sum(x.numel() for x in model.parameters()) / 1e6:.1f} M",
        f"{flops / 1e9:.1f} G",
        *(f"{x:.3g}" for x in rates),
        f"{megabytes / 1e3:.1f} GB, {images_per_process(cfg)} images of "
        + " x ".join(map(str, cfg.INPUT.CENTER_CROP_PAD.SIZE)),
    ]


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", help="config files or names of configs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(training_megabytes(args.memory_of))
        return
    rows = [measured(config, args.threads, args.runs) for config in args.configs]
    headers = ["config", "parameters", "multiply-adds", *(f"{x}, images/s" for x in DTYPES)]
    headers += ["onnxruntime, images/s", "training memory"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
