"""Trains variants of the detector with the same seeds, images and iterations, and compares them.

    %(prog)s --output output/ablation

Variants whose results exist are not trained again, interrupted trainings continue. The results are
written after each variant: ablation.json, ablation.md and ablation.png.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from matplotlib.figure import Figure
from tabulate import tabulate

from centripetalnet import engine
from centripetalnet.commands.common import command
from centripetalnet.commands.measuring import median_seconds, training_batch
from centripetalnet.data import load_config
from centripetalnet.engine.solver import build_optimizer
from centripetalnet.io.files import atomic_file

_NET = "MODEL.CENTRIPETALNET."
METRICS = ("AP", "AP50", "AP75")
# Of the released model, where the config has others: no masks, no mirror images, plain scores.
COMMON = ["MODEL.MASK_ON", "False", "TEST.AUG.ENABLED", "False", f"{_NET}WEIGHT_SCORES", "False"]


class Variant(NamedTuple):
    """A detector to compare."""

    label: str
    opts: dict[str, str]
    """Changes to MODEL.CENTRIPETALNET."""
    weights_of: Optional[str] = None
    """The variant whose weights are evaluated with ``opts``, instead of a training."""


VARIANTS = {
    "embedding": Variant("associative embedding (CornerNet)", {"MATCHING": "EmbeddingMatching"}),
    "shift": Variant(
        "centripetal shift, plain convolution",
        {"SHIFT_CONV": "plain", "GUIDING_SHIFT": "False"},
    ),
    "deformable": Variant(
        "centripetal shift, deformable convolution",
        {"SHIFT_CONV": "deformable", "GUIDING_SHIFT": "False"},
    ),
    "cross-star": Variant("centripetal shift, cross-star convolution (CentripetalNet)", {}),
    "weighted": Variant(
        "the same with weighted scores", {"WEIGHT_SCORES": "True"}, weights_of="cross-star"
    ),
}


def get_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/ablation", metavar="FOLDER")
    parser.add_argument("--config-file", default="centripetal_mask_lite0", metavar="FILE")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        metavar="NAME",
        help=f"which to train: {', '.join(VARIANTS)}; the results list all that were trained",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (%(default)s)")
    parser.add_argument(
        "--iterations", type=int, default=600, help="of each training (%(default)s)"
    )
    parser.add_argument(
        "--timed-steps", type=int, default=15, help="training steps to time (%(default)s)"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="changes to the config of all variants, KEY VALUE pairs",
    )
    return parser


def config_options(variant: Variant, args: argparse.Namespace) -> list[str]:
    """Changes to the config that make the variant, KEY VALUE pairs."""
    own = [x for key, value in variant.opts.items() for x in (f"{_NET}{key}", value)]
    return [*COMMON, "SOLVER.MAX_ITER", str(args.iterations), *args.opts, *own]


def result_of(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Trains a variant with one seed and evaluates it, unless its result is there.

    Returns:
        ``METRICS`` of the validation images.

    Raises:
        ValueError: if the result is of another config.
        subprocess.CalledProcessError: if the training fails.
    """
    variant = VARIANTS[name]
    folder = os.path.join(args.output, name, f"seed{seed}")
    path = os.path.join(folder, "result.json")
    opts = ["SEED", str(seed), "OUTPUT_DIR", folder, *config_options(variant, args)]
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        if result["opts"] != opts:
            raise ValueError(
                f"{path} is the result of other options, {shlex.join(result['opts'])}; expected "
                f"{shlex.join(opts)}. Give another --output, or remove the folder."
            )
        return result
    trained = os.path.join(args.output, variant.weights_of or name, f"seed{seed}")
    if not variant.weights_of:
        train = [sys.executable, "-m", "centripetalnet.commands.train", "--resume"]
        train += ["--config-file", args.config_file, *opts, "DATASETS.TEST", "()"]
        print("+", shlex.join(train), flush=True)
        subprocess.run(train, check=True, stdin=subprocess.DEVNULL)
    evaluation = ["--eval-only", "--config-file", args.config_file, *opts]
    evaluation += ["MODEL.WEIGHTS", os.path.join(trained, "model_final.pth")]
    found = engine.main(default_argument_parser().parse_args(evaluation))["bbox"]
    result = {"opts": opts, **{metric: found[metric] for metric in METRICS}}
    with atomic_file(path, "w") as file:
        json.dump(result, file, indent=2)
    return result


def step_seconds(args: argparse.Namespace, names: Sequence[str]) -> dict[str, float]:
    """Median seconds of a training step of each variant, measured alternately."""
    steps: dict[str, Callable] = {}
    for name in names:
        cfg = load_config(args.config_file, config_options(VARIANTS[name], args))
        steps[name] = _training_step(cfg)
    return median_seconds(args.timed_steps, **steps)


def _training_step(cfg: CfgNode) -> Callable[[], None]:
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    batch = training_batch(*cfg.INPUT.CENTER_CROP_PAD.SIZE, cfg.SOLVER.IMS_PER_BATCH)

    def step() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    return step


def num_parameters(args: argparse.Namespace, name: str) -> int:
    cfg = load_config(args.config_file, config_options(VARIANTS[name], args))
    return sum(x.numel() for x in build_model(cfg).parameters())


def write_results(rows: dict[str, dict], args: argparse.Namespace) -> str:
    """Writes ablation.json, ablation.md and ablation.png; returns the table."""
    table = []
    for name, row in rows.items():
        values = [[run[metric] for run in row["runs"]] for metric in METRICS]
        seconds = row.get("seconds")
        table.append(
            [
                VARIANTS[name].label,
                f"{statistics.mean(values[0]):.1f} ({min(values[0]):.1f} to {max(values[0]):.1f})",
                *(f"{statistics.mean(x):.1f}" for x in values[1:]),
                f"{row['parameters'] / 1e6:.2f} M",
                "" if seconds is None else f"{seconds:.3f}",
            ]
        )
    headers = ["variant", "AP (lowest to highest)", "AP50", "AP75", "parameters", "s/iteration"]
    text = tabulate(table, headers=headers, tablefmt="github", disable_numparse=True)
    with atomic_file(os.path.join(args.output, "ablation.json"), "w") as file:
        json.dump(rows, file, indent=2)
    with atomic_file(os.path.join(args.output, "ablation.md"), "w") as file:
        file.write(f"{text}\n")
    figure = results_figure({VARIANTS[x].label: row["runs"] for x, row in rows.items()})
    figure.savefig(os.path.join(args.output, "ablation.png"), dpi=120)
    return text


def results_figure(runs: dict[str, list[dict]]) -> Figure:
    """AP of each variant: one point for each seed, a bar for the mean."""
    figure = Figure(figsize=(9, 0.9 + 0.5 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for y, of_variant in enumerate(runs.values()):
        values = [x["AP"] for x in of_variant]
        axes.plot(values, [y] * len(values), "o", color="#0072b2", alpha=0.7)
        axes.vlines(statistics.mean(values), y - 0.3, y + 0.3, color="#d55e00", linewidth=2)
    axes.set_yticks(range(len(runs)), list(runs))
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlabel("box AP of the validation images: each seed, and the mean")
    axes.grid(axis="x", alpha=0.4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def run(args: argparse.Namespace) -> None:
    """Trains what is missing and writes the results.

    Args:
        args: of :func:`get_parser`.
    """
    os.makedirs(args.output, exist_ok=True)
    args.output = os.path.abspath(args.output)
    root = os.path.join(os.path.dirname(args.output), "datasets")
    # In the environment, for the training processes, too.
    os.environ.setdefault("DETECTRON2_DATASETS", root)
    cfg = load_config(args.config_file, config_options(VARIANTS[args.variants[0]], args))
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        prepare = MetadataCatalog.get(dataset).get("prepare")
        if prepare:
            prepare()
    rows: dict[str, dict] = {}
    text = ""
    # Variants without a training of their own come after those whose weights they need.
    for name in sorted(args.variants, key=list(VARIANTS).index):
        runs = [result_of(name, seed, args) for seed in range(1, args.seeds + 1)]
        rows[name] = {"parameters": num_parameters(args, name), "runs": runs}
        text = write_results(rows, args)
    if args.timed_steps:
        trained = [name for name in rows if not VARIANTS[name].weights_of]
        for name, seconds in step_seconds(args, trained).items():
            rows[name]["seconds"] = seconds
        text = write_results(rows, args)
    print(f"\n{text}\n\nresults  {os.path.join(args.output, 'ablation.md')}, .json, .png")


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
