#!/usr/bin/env python3
"""Trains, evaluates and explains a small detector on the CPU, for `make demo`."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time

import cv2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import default_argument_parser
from tabulate import tabulate

from centripetalnet.commands import report
from centripetalnet.data import load_config
from centripetalnet.engine import main as train_net_main
from centripetalnet.predictor import Predictor
from centripetalnet.visualization import draw_detections, draw_ground_truth, tile

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIG_FILE = os.path.join(PROJECT, "configs", "quick_schedules", "centripetal_mask_lite0.yaml")
METRICS = ("AP", "AP50", "AP75")
TASKS = {
    "bbox": "box",
    "bbox_TTA": "box, with flip TTA",
    "segm": "mask",
    "segm_TTA": "mask, with flip TTA",
}


def train(training_dir: str, opts: list) -> float:
    """Runs train_net.py without its evaluation; returns seconds."""
    command = [sys.executable, os.path.join(PROJECT, "train_net.py"), "--config-file", CONFIG_FILE]
    command += ["OUTPUT_DIR", training_dir, "DATASETS.TEST", "()", *opts]
    print("+", shlex.join(command), flush=True)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def evaluate(training_dir: str, weights: str, opts: list) -> dict:
    """Runs `train_net.py --eval-only` in this process; returns the metrics."""
    args = ["--eval-only", "--config-file", CONFIG_FILE, "OUTPUT_DIR", training_dir]
    args += [*opts, "MODEL.WEIGHTS", weights]
    print("+", shlex.join(["train_net.py", *args]), flush=True)
    return train_net_main(default_argument_parser().parse_args(args))


def draw_sheet(path: str, weights: str, num_images: int, columns: int, opts: list) -> None:
    """Draws validation images, ground truth on the left and detections on the right."""
    cfg = load_config(CONFIG_FILE, [*opts, "MODEL.WEIGHTS", weights])
    predictor = Predictor(cfg)
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    pairs = []
    for record in DatasetCatalog.get(name)[:num_images]:
        image = read_image(record["file_name"], format="RGB")
        instances = predictor(image[:, :, ::-1])["instances"]
        pair = [
            draw_ground_truth(image, record, metadata, cfg.MODEL.MASK_ON, scale=2),
            draw_detections(image, instances, metadata, min_score=0.4, scale=2),
        ]
        pairs.append(tile(pair, columns=2))
    if not cv2.imwrite(path, tile(pairs, columns, gap=16)[:, :, ::-1]):
        raise OSError(f"cannot write {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/demo", help="output folder")
    parser.add_argument("--num-images", type=int, default=12, help="images in detections.png")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options, KEY VALUE pairs")
    args = parser.parse_args()
    output = os.path.abspath(args.output)
    training_dir = os.path.join(output, "training")
    weights = os.path.join(training_dir, "model_final.pth")
    sheet = os.path.join(output, "detections.png")
    metrics_file = os.path.join(output, "metrics.json")
    os.makedirs(training_dir, exist_ok=True)
    # In the environment, for the training process, too.
    os.environ.setdefault("DETECTRON2_DATASETS", os.path.join(os.path.dirname(output), "datasets"))

    start = time.perf_counter()
    metadata = MetadataCatalog.get("silhouettes_train")
    metadata.prepare()
    dataset_seconds = time.perf_counter() - start
    train_seconds = train(training_dir, args.opts)
    start = time.perf_counter()
    results = evaluate(training_dir, weights, args.opts)
    eval_seconds = time.perf_counter() - start
    start = time.perf_counter()
    draw_sheet(sheet, weights, args.num_images, 3, args.opts)
    draw_seconds = time.perf_counter() - start
    start = time.perf_counter()
    report_dir = os.path.join(output, "report")
    report_args = ["--config-file", CONFIG_FILE, *args.opts, "MODEL.WEIGHTS", weights]
    if report.main([*report_args, "--output", report_dir]):
        sys.exit(1)
    report_seconds = time.perf_counter() - start

    metrics = {task: {name: result[name] for name in METRICS} for task, result in results.items()}
    metrics["iterations"] = load_config(CONFIG_FILE, args.opts).SOLVER.MAX_ITER
    metrics["dataset_seconds"] = dataset_seconds
    metrics["train_seconds"] = train_seconds
    metrics["eval_seconds"] = eval_seconds
    with open(metrics_file, "w", encoding="utf-8") as file:
        json.dump(metrics, file, indent=2)

    print()
    print(
        tabulate(
            [
                [TASKS[task], *(metrics[task][name] for name in METRICS)]
                for task in TASKS
                if task in metrics
            ],
            headers=["validation", *METRICS],
            floatfmt=".1f",
            tablefmt="github",
        )
    )
    print()
    print(
        tabulate(
            [
                ["dataset", dataset_seconds],
                ["training", train_seconds],
                ["both evaluations", eval_seconds],
                ["images", draw_seconds],
                ["report", report_seconds],
            ],
            headers=["phase", "seconds"],
            floatfmt=".0f",
            tablefmt="github",
        )
    )
    print(f"\nimages      {sheet}\ncheckpoint  {weights}\nmetrics     {metrics_file}")
    print(f"report      {os.path.join(report_dir, 'report.html')}")


if __name__ == "__main__":
    main()
