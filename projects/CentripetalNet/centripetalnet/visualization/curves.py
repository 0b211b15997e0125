"""Losses, learning rate and AP of a training as curves."""

import json
import os
from collections import defaultdict
from typing import Optional

from detectron2.utils.file_io import PathManager
from matplotlib.figure import Figure

from ..io.files import atomic_file


def read_metrics(path: str) -> dict[str, dict[int, float]]:
    """The scalars of Detectron2's metrics.json by name and iteration.

    A resumed training repeats iterations; the values of the last run count. Lines that are not
    JSON, such as an incomplete one of a killed training, are skipped.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it contains no metrics.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    with open(PathManager.get_local_path(path), encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                scalars = json.loads(line)
                iteration = scalars.pop("iteration")
            except (AttributeError, KeyError, TypeError, ValueError):
                continue
            for name, value in scalars.items():
                while curves[name] and next(reversed(curves[name])) >= iteration:
                    curves[name].popitem()
                curves[name][iteration] = value
    if not curves:
        raise ValueError(
            f"{path} contains no metrics, expected the metrics.json of a training: one JSON object "
            'with an "iteration" on each line.'
        )
    return dict(curves)


def plot_training(output_dir: str, path: Optional[str] = None) -> str:
    """Draws the curves of a training into its folder.

    Args:
        output_dir: of the training, with its metrics.json.
        path: of the figure, by default ``training.png`` in that folder. It is written atomically.

    Returns:
        The path.

    Raises:
        OSError, ValueError: see :func:`read_metrics`; also if the figure cannot be written.
    """
    path = path or os.path.join(output_dir, "training.png")
    curves = read_metrics(os.path.join(output_dir, "metrics.json"))
    figure = Figure((11, 8), dpi=120, layout="constrained")
    figure.suptitle(os.path.basename(os.path.abspath(output_dir)))
    # With several test datasets, the names of the APs begin with that of the dataset.
    panels = {
        "loss": [x for x in curves if "loss" in x],
        "learning rate": [x for x in curves if x == "lr"],
        "AP": [x for x in curves if x.rsplit("/", 1)[-1] in ("AP", "AP50", "AP75")],
    }
    for axes, (title, names) in zip(figure.subplots(3, 1, sharex=True), panels.items()):
        for name in names:
            marker = "o" if title == "AP" else ""
            axes.plot(list(curves[name]), list(curves[name].values()), marker=marker, label=name)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if names:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        if title == "loss":
            axes.set_yscale("log")
            # Powers of ten would need math fonts.
            axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("iteration")
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png")
    return path
