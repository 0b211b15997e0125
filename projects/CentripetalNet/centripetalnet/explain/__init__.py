from .pair_sheet import explanation_figure
from .pairs import choose_pair, explain, pair_outcomes, select_candidates
from .target_sheet import targets_figure
from .training_picture import draw_training_sample, overlay_heatmap, training_picture

__all__ = [
    "choose_pair",
    "draw_training_sample",
    "explain",
    "explanation_figure",
    "overlay_heatmap",
    "pair_outcomes",
    "select_candidates",
    "targets_figure",
    "training_picture",
]
