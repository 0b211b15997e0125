from .curves import plot_training, read_metrics
from .pictures import draw_detections, draw_ground_truth, tile
from .sheet import rendered

__all__ = [
    "draw_detections",
    "draw_ground_truth",
    "plot_training",
    "read_metrics",
    "rendered",
    "tile",
]
