from .curves import draw_curves, plot_training, read_metrics
from .explanation import explanation_figure
from .pictures import (
    draw_detections,
    draw_ground_truth,
    draw_training_sample,
    overlay_heatmap,
    tile,
    training_picture,
)
from .sheet import rendered
from .targets import targets_figure

__all__ = [
    "draw_curves",
    "draw_detections",
    "draw_ground_truth",
    "draw_training_sample",
    "explanation_figure",
    "overlay_heatmap",
    "plot_training",
    "read_metrics",
    "rendered",
    "targets_figure",
    "tile",
    "training_picture",
]
