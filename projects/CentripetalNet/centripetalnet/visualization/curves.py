"""Losses and AP of a training as curves, from the metrics.json that Detectron2 writes."""

import json
import logging
import math
import os
from collections import defaultdict
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..io.files import atomic_file
from .sheet import INK, rendered

logger = logging.getLogger(__name__)

# Iterations, ascending, and the value at each.
Curve = Tuple[List[int], List[float]]

_TOTAL = "total_loss"
_AP_NAMES = ("AP", "AP50", "AP75")
# The palette of Okabe and Ito without black and yellow.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
# Longer curves are drawn pale under their running median.
_MAX_POINTS = 400


def read_metrics(path: str) -> Dict[str, Curve]:
    """Reads every scalar of a training, by name.

    A resumed training repeats iterations. The values of the last run count. An incomplete line,
    which a killed training leaves, is skipped with a warning.

    Args:
        path: of metrics.json, one JSON object on each line.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file contains no metrics.
    """
    curves: Dict[str, Curve] = defaultdict(lambda: ([], []))
    with open(PathManager.get_local_path(path), encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            scalars = _scalars(line)
            if scalars is None:
                if line.strip():
                    logger.warning("%s, line %d is not a line of metrics. Skipped.", path, number)
                continue
            iteration = scalars.pop("iteration")
            for name, value in scalars.items():
                iterations, values = curves[name]
                while iterations and iterations[-1] >= iteration:
                    iterations.pop()
                    values.pop()
                iterations.append(iteration)
                values.append(value)
    if not curves:
        raise ValueError(
            f"{path} contains no metrics, expected the metrics.json of a training: one JSON object "
            'with an "iteration" on each line.'
        )
    return dict(curves)


def _scalars(line: str) -> Optional[dict]:
    """The scalars of a line, or None if the line contains no metrics."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("iteration"), int):
        return None
    return {
        name: value
        for name, value in content.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def draw_curves(curves: Dict[str, Curve], title: str = "") -> np.ndarray:
    """Draws losses, learning rate and, if there are evaluations, AP.

    Args:
        curves: from :func:`read_metrics`.
        title: of the figure.

    Returns:
        (height, width, 3) RGB uint8.
    """
    return rendered(curves_figure(curves, title))


def plot_training(output_dir: str, path: Optional[str] = None) -> str:
    """Draws the curves of a training into its folder.

    Args:
        output_dir: of the training, with its metrics.json.
        path: of the figure, by default ``training.png`` in that folder. It is written atomically.

    Returns:
        The path.

    Raises:
        OSError: if metrics.json cannot be read, or the figure cannot be written.
        ValueError: if metrics.json contains no metrics.
    """
    path = path or os.path.join(output_dir, "training.png")
    curves = read_metrics(os.path.join(output_dir, "metrics.json"))
    picture = draw_curves(curves, os.path.basename(os.path.abspath(output_dir)))
    encoded = cv2.imencode(".png", picture[:, :, ::-1])[1]
    with atomic_file(path, "wb") as file:
        file.write(encoded.tobytes())
    return path


def curves_figure(curves: Dict[str, Curve], title: str = "") -> Figure:
    """The Matplotlib figure of :func:`draw_curves`, without a window."""
    losses = [_TOTAL] + sorted(x for x in curves if x.startswith("loss_"))
    losses = [x for x in losses if x in curves]
    # With several test datasets, each name is prefixed with its dataset.
    aps = [x for x in curves if x.rsplit("/", 1)[-1] in _AP_NAMES and x.count("/") in (1, 2)]
    panels = 3 if aps else 2
    figure = Figure((11, 1.0 + 3.0 * panels - 1.2), dpi=120, facecolor="white")
    axes = figure.subplots(
        panels,
        1,
        sharex=True,
        gridspec_kw={"height_ratios": [3.2, 1.1, 2.6][:panels], "hspace": 0.16},
    )
    figure.subplots_adjust(left=0.075, right=0.8, top=0.93, bottom=0.075)
    figure.suptitle(title, x=0.075, y=0.985, horizontalalignment="left", fontsize=13, color=INK)
    names = [x.replace("loss_", "").replace("_", " ") for x in losses]
    _draw(axes[0], curves, losses, names, "loss")
    axes[0].set_yscale("log")
    # Powers of ten would need math fonts.
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    _draw(axes[1], curves, [x for x in ("lr",) if x in curves], ["learning rate"], "learning rate")
    axes[1].set_ylim(bottom=0)
    if aps:
        _draw(axes[2], curves, aps, [x.replace("/", " ") for x in aps], "AP", marker="o")
        axes[2].set_ylim(0, 100)
    axes[-1].set_xlabel("iteration", fontsize=11, color=INK)
    return figure


def _draw(
    axes: Axes,
    curves: Dict[str, Curve],
    keys: Sequence[str],
    labels: Sequence[str],
    unit: str,
    marker: str = "",
) -> None:
    for i, (key, label) in enumerate(zip(keys, labels)):
        iterations, values = np.array(curves[key][0]), _drawable(curves[key][1], unit == "loss")
        color = INK if key == _TOTAL else _COLORS[i % len(_COLORS)]
        style = {"color": color, "linewidth": 2.2 if key == _TOTAL else 1.5}
        # When the colours are used up, the line style changes.
        style["linestyle"] = ("-", "--", ":")[i // len(_COLORS) % 3]
        if len(values) > _MAX_POINTS:
            axes.plot(iterations, values, color=color, linewidth=0.6, alpha=0.25)
            values = _running_median(values, len(values) // 100)
        axes.plot(iterations, values, marker=marker, markersize=4, label=label, **style)
    axes.set_ylabel(unit, fontsize=11, color=INK)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=9.5, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if keys:
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.03), fontsize=10, frameon=False, ncol=1
        )


def _drawable(values: Sequence[float], positive: bool) -> np.ndarray:
    """The values with NaN where one is not finite, or not positive on a logarithmic axis."""
    drawable = np.array(values, dtype=float)
    drawable[~np.isfinite(drawable) | (positive & (drawable <= 0))] = math.nan
    return drawable


def _running_median(values: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(values, reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    # nanmedian, so that a NaN does not spread to its neighbours.
    middle = np.full(len(values), math.nan)
    has_any = np.isfinite(windows).any(axis=1)
    middle[has_any] = np.nanmedian(windows[has_any], axis=1)
    return middle
