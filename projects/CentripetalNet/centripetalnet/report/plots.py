"""Curves and pictures of the page, as data URIs."""

import base64
import io
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ..visualization.sheet import BOX_COLOR, BR_COLOR, PROBLEM_COLOR, TL_COLOR

_CURVES, _PICTURE_WIDTH = {0.5: BOX_COLOR, 0.75: TL_COLOR, 0.9: BR_COLOR}, 480
_STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8.5, "axes.grid": True}
_STYLE |= {"grid.color": "#dddddd", "axes.spines.top": False, "axes.spines.right": False}


def jpeg(image: np.ndarray, width: int = _PICTURE_WIDTH) -> str:
    """An image (h, w, 3) RGB uint8, resized to this width."""
    scale = width / image.shape[1]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


@matplotlib.rc_context(_STYLE)
def precision_recall(precision: np.ndarray, names: Sequence[str]) -> str:
    """Precision (10, 101, C) over recall, a panel for all classes and one for each of the C."""
    known = np.where(precision > -1, precision, np.nan)
    present = np.flatnonzero(~np.isnan(known).all(axis=(0, 1)))
    panels = {"all classes": known[:, :, present].mean(axis=2)}
    panels.update({names[i]: known[:, :, i] for i in present})
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure((2.4 * columns, 2.1 * rows + 0.35), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel, (name, values) in zip(axes, panels.items()):
        for iou, color in _CURVES.items():
            curve = values[round((iou - 0.5) / 0.05)]
            panel.plot(np.linspace(0, 1, 101), curve, color=color, label=f"IoU {iou}")
        panel.set(title=name, xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    figure.supxlabel("recall")
    figure.supylabel("precision")
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncol=3, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_boxes(image: np.ndarray, boxes, labels: Sequence[str], are_good: Sequence[bool]) -> str:
    """An image (h, w, 3) RGB with boxes (M, 4) and labels, green if they are good, red if not."""
    scale = _PICTURE_WIDTH / image.shape[1]
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    height, width = picture.shape[:2]
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    # Red ones last, so that none is hidden.
    for i in np.argsort(~np.asarray(are_good, dtype=bool), kind="stable"):
        color = [round(255 * x) for x in to_rgb(BOX_COLOR if are_good[i] else PROBLEM_COLOR)]
        x0, y0, x1, y1 = (boxes[i] * scale).round().astype(int).tolist()
        cv2.rectangle(picture, (x0, y0), (x1, y1), color, 2)
        (wide, high), _ = cv2.getTextSize(labels[i], font, size, 1)
        x0, y0 = max(0, min(x0, width - wide - 6)), max(0, min(y0, height - high - 6))
        cv2.rectangle(picture, (x0, y0), (x0 + wide + 6, y0 + high + 6), color, cv2.FILLED)
        place = (x0 + 3, y0 + high + 2)
        cv2.putText(picture, labels[i], place, font, size, (255, 255, 255), 1, cv2.LINE_AA)
    return jpeg(picture)
