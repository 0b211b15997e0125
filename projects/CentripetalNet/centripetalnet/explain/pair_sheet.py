"""A figure of what the detector predicted in an image and why pairs of corners were rejected."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..structures import Explanation, PairOutcome, SeenCorners
from ..visualization.sheet import (
    BOX_COLOR,
    BR_COLOR,
    BR_MARKER,
    INK,
    PROBLEM_COLOR,
    TL_COLOR,
    TL_MARKER,
    Sheet,
    arrow,
    box_list,
    class_name,
    draw_heatmap,
    draw_numbered_boxes,
    faded,
    outline,
    rectangle,
    side_by_side,
)

OUTCOME_NAMES = {
    PairOutcome.OTHER_CLASS: "other class",
    PairOutcome.NO_EXTENT: "no extent",
    PairOutcome.TL_OUTSIDE: "top-left centre outside",
    PairOutcome.BR_OUTSIDE: "bottom-right centre outside",
    PairOutcome.FAR_APART: "centres too far apart",
    PairOutcome.SCORE_TOO_LOW: "score too low",
    PairOutcome.SUPPRESSED: "removed by soft-NMS",
    PairOutcome.ACCEPTED: "accepted",
}
_SENTENCES = {
    PairOutcome.OTHER_CLASS: "Rejected: the corners are of different classes",
    PairOutcome.NO_EXTENT: "Rejected: bottom-right is not below and right of top-left",
    PairOutcome.TL_OUTSIDE: "Rejected: top-left points outside the central region",
    PairOutcome.BR_OUTSIDE: "Rejected: bottom-right points outside the central region",
    PairOutcome.FAR_APART: "Rejected: the centres span {spread:.2f} of the central region",
    PairOutcome.SCORE_TOO_LOW: "Rejected: too many boxes have higher scores",
    PairOutcome.SUPPRESSED: "Removed by soft-NMS, overlaps better boxes",
    PairOutcome.ACCEPTED: "Accepted, score {score:.2f} after soft-NMS",
}
# More marks would hide each other.
_MAX_CORNERS = 40


def explanation_figure(
    image: np.ndarray,
    explanation: Explanation,
    pair: tuple[int, int],
    class_names: Optional[Sequence[str]] = None,
    title: str = "",
    min_score: float = 0.3,
) -> Figure:
    """Six panels: both heatmaps, corners with centres and boxes, sampling points, a pair, counts.

    Args:
        image: (h0, w0, 3) RGB uint8.
        explanation: of that image.
        pair: indices of the top-left and the bottom-right corner that panels d and e show.
        class_names: of the dataset.
        title: of the figure.
        min_score: corners and boxes with lower scores are not drawn. Pairs with lower scores are
            not in the second count.

    Returns:
        A Matplotlib figure without a window; :func:`rendered` converts it to an image.
    """
    sheet = Sheet(image.shape[:2], 2, 3, title, strip=1.0, min_panel_height=3.1)
    grey = faded(image)
    corners = (
        ("Top-left corners", explanation.tl, TL_COLOR, TL_MARKER),
        ("Bottom-right corners", explanation.br, BR_COLOR, BR_MARKER),
    )
    for column, (name, seen, color, marker) in enumerate(corners):
        axes = sheet.picture(0, column, grey, name)
        drawn = draw_heatmap(axes, seen.heatmap, explanation.map_extent)
        _draw_corners(axes, seen, color, marker, min_score)
        sheet.color_bar(
            0, column, drawn, f"probability, maximum over classes (marked: from {min_score:g})"
        )

    axes = sheet.picture(0, 2, image, "Centres that corners point to, and boxes")
    num_boxes = _draw_detections(axes, explanation, min_score)
    for _, seen, color, _ in corners:
        _draw_arrows(axes, seen, color, min_score)
    boxes = box_list(_box_texts(explanation, num_boxes, class_names))
    sheet.legend(0, 2, side_by_side(_corner_handles(), boxes), columns=2)

    axes = sheet.picture(1, 0, grey, "Sampling points of the cross-star convolution")
    for seen, index, color, marker in (
        (explanation.tl, pair[0], TL_COLOR, TL_MARKER),
        (explanation.br, pair[1], BR_COLOR, BR_MARKER),
    ):
        _draw_sampling_points(axes, seen, index, color, marker)
    sheet.legend(1, 0, _sampling_handles(explanation, pair, image.shape[:2]), columns=1)

    axes = sheet.picture(1, 1, image, "One pair of corners")
    _draw_pair(axes, explanation, pair)
    outcome = PairOutcome(int(explanation.outcome[pair]))
    sheet.text(
        1,
        1,
        _pair_lines(explanation, pair, class_names),
        BOX_COLOR if outcome == PairOutcome.ACCEPTED else PROBLEM_COLOR,
    )

    _draw_counts(sheet, 1, 2, explanation, outcome, min_score)
    return sheet.figure


def _drawn(seen: SeenCorners, min_score: float) -> range:
    """Indices of the corners that are drawn; they are sorted by score."""
    return range(min(int((seen.score >= min_score).sum()), _MAX_CORNERS))


def _draw_corners(axes: Axes, seen: SeenCorners, color: str, marker, min_score: float) -> None:
    for i in _drawn(seen, min_score):
        _mark_corner(axes, seen.position[i], color, marker)


def _mark_corner(axes: Axes, position, color: str, marker, size: float = 20) -> None:
    axes.plot(
        *position.tolist(),
        marker=marker,
        markersize=size,
        markerfacecolor="none",
        markeredgecolor=color,
        markeredgewidth=1.8,
        path_effects=outline(3.6),
        gid="corner",
    )


def _draw_arrows(axes: Axes, seen: SeenCorners, color: str, min_score: float) -> None:
    for i in _drawn(seen, min_score):
        axes.add_patch(arrow(seen.position[i].tolist(), seen.center[i].tolist(), color))


def _draw_detections(axes: Axes, explanation: Explanation, min_score: float) -> int:
    """Draws numbered boxes with their central regions; returns how many."""
    count = int((explanation.detection_scores >= min_score).sum())
    boxes = []
    for i in range(count):
        pair = tuple(explanation.detections[i].tolist())
        box = explanation.boxes[pair].tolist()
        axes.add_patch(rectangle(explanation.regions[pair].tolist(), BOX_COLOR, 0.8, fill=0.2))
        boxes.append(box)
    draw_numbered_boxes(axes, boxes)
    return count


def _corner_handles() -> list:
    return [
        Line2D([], [], color=TL_COLOR, linewidth=2, label="top-left to its centre"),
        Line2D([], [], color=BR_COLOR, linewidth=2, label="bottom-right to its centre"),
        Patch(facecolor=BOX_COLOR, alpha=0.35, label="central region"),
    ]


def _box_texts(explanation: Explanation, count: int, names: Optional[Sequence[str]]) -> list:
    """Class and score of the drawn boxes."""
    classes = explanation.tl.cls[explanation.detections[:count, 0]].tolist()
    scores = explanation.detection_scores[:count].tolist()
    return [f"{class_name(names, cls)} {score:.2f}" for cls, score in zip(classes, scores)]


def _draw_sampling_points(axes: Axes, seen: SeenCorners, index: int, color: str, marker) -> None:
    points = seen.sampling_points[index]
    corner = seen.position[index]
    for x, y in points.tolist():
        axes.plot(
            [float(corner[0]), x], [float(corner[1]), y], color=color, linewidth=0.9, alpha=0.8
        )
    axes.plot(
        *points.T.tolist(),
        linestyle="none",
        marker="o",
        markersize=6,
        markerfacecolor=color,
        markeredgecolor="white",
        markeredgewidth=1,
        gid="sampling points",
    )
    _mark_corner(axes, corner, color, marker, size=26)


def _sampling_handles(
    explanation: Explanation, pair: tuple[int, int], size: tuple[int, int]
) -> list:
    """Legend of the sampling points, with the number of those outside the image."""
    handles = []
    limit = explanation.boxes.new_tensor((size[1], size[0]))
    for name, seen, index, color in (
        ("top-left", explanation.tl, pair[0], TL_COLOR),
        ("bottom-right", explanation.br, pair[1], BR_COLOR),
    ):
        points = seen.sampling_points[index]
        outside = int(((points < 0) | (points > limit)).any(dim=1).sum())
        label = f"{len(points)} points of the {name} corner in e"
        if outside:
            label += f" ({outside} outside)"
        handles.append(
            Line2D([], [], color=color, marker="o", markeredgecolor="white", label=label)
        )
    return handles


def _draw_pair(axes: Axes, explanation: Explanation, pair: tuple[int, int]) -> None:
    outcome = PairOutcome(int(explanation.outcome[pair]))
    color = BOX_COLOR if outcome == PairOutcome.ACCEPTED else PROBLEM_COLOR
    if outcome != PairOutcome.NO_EXTENT:
        axes.add_patch(rectangle(explanation.regions[pair].tolist(), color, 1.0, fill=0.3))
        axes.add_patch(rectangle(explanation.boxes[pair].tolist(), color, 2.0, linestyle="--"))
    for seen, index, of_corner, marker in (
        (explanation.tl, pair[0], TL_COLOR, TL_MARKER),
        (explanation.br, pair[1], BR_COLOR, BR_MARKER),
    ):
        start, end = seen.position[index], seen.center[index]
        axes.add_patch(arrow(start.tolist(), end.tolist(), of_corner, 2.2, mutation_scale=12))
        _mark_corner(axes, start, of_corner, marker, size=26)


def _pair_lines(
    explanation: Explanation, pair: tuple[int, int], names: Optional[Sequence[str]]
) -> tuple[str, ...]:
    tl, br = explanation.tl, explanation.br
    outcome = PairOutcome(int(explanation.outcome[pair]))
    final = (explanation.detections == explanation.detections.new_tensor(pair)).all(dim=1)
    score = float(explanation.detection_scores[final].sum())
    return (
        f"top-left: {class_name(names, int(tl.cls[pair[0]]))} {float(tl.score[pair[0]]):.2f}, "
        f"bottom-right: {class_name(names, int(br.cls[pair[1]]))} {float(br.score[pair[1]]):.2f}",
        f"score of the box {float(explanation.scores[pair]):.2f}; shaded: its central region",
        _SENTENCES[outcome].format(spread=float(explanation.spread[pair]), score=score),
    )


def _draw_counts(
    sheet: Sheet,
    row: int,
    column: int,
    explanation: Explanation,
    chosen: PairOutcome,
    min_score: float,
) -> None:
    every, best = explanation.count_outcomes(), explanation.count_outcomes(min_score)
    sheet.title(row, column, f"Outcome of the {sum(every.values()):,} pairs of corners")
    axes = sheet.axes(row, column, inset=(2.15, 0.1, 0.6, 0.05))
    for y, outcome in enumerate(PairOutcome):
        is_accepted = outcome == PairOutcome.ACCEPTED
        color = BOX_COLOR if is_accepted else PROBLEM_COLOR
        for count, shift, strength in ((every[outcome], -0.19, 0.45), (best[outcome], 0.19, 1.0)):
            axes.barh(y + shift, count, height=0.34, color=color, alpha=strength)
            axes.annotate(
                f"{count:,}",
                (max(count, 1), y + shift),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=9,
                color=INK,
                verticalalignment="center",
            )
    axes.set(xscale="log", xlim=(0.7, max(every.values()) * 1.1), ylim=(7.6, -0.6), xticks=[])
    axes.minorticks_off()
    axes.set_yticks(list(PairOutcome), [OUTCOME_NAMES[x] for x in PairOutcome], fontsize=9.5)
    axes.tick_params(length=0, colors=INK)
    axes.get_yticklabels()[chosen].set_fontweight("bold")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    sheet.legend(
        row,
        column,
        [
            Patch(facecolor="#888888", alpha=0.45, label="all pairs (logarithmic scale)"),
            Patch(
                facecolor="#888888",
                label=f"pairs with a score of at least {min_score:g} before soft-NMS",
            ),
            Patch(facecolor="none", label="bold: the pair in e"),
        ],
        columns=1,
    )
