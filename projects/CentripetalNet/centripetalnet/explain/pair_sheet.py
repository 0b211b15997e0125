"""A figure of what the detector predicted in an image and why pairs of corners were rejected."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from torch import Tensor

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
    class_name,
    draw_heatmap,
    draw_numbered_boxes,
    faded,
    line,
    outline,
    rectangle,
)

# More marks would hide each other.
_MAX_CORNERS = 40


class _Corner(NamedTuple):
    name: str
    seen: SeenCorners
    index: int
    """Of the corner in the pair."""
    color: str
    marker: Path


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
        _Corner("top-left", explanation.tl, pair[0], TL_COLOR, TL_MARKER),
        _Corner("bottom-right", explanation.br, pair[1], BR_COLOR, BR_MARKER),
    )
    for column, corner in enumerate(corners):
        axes = sheet.picture(0, column, grey, f"{corner.name.capitalize()} corners")
        drawn = draw_heatmap(axes, corner.seen.heatmap, explanation.map_extent)
        for position in corner.seen.position[: _num_drawn(corner.seen, min_score)]:
            _mark_corner(axes, position, corner)
        sheet.color_bar(
            0, column, drawn, f"probability, maximum over classes (marked: from {min_score:g})"
        )

    # Without central regions, corners have embeddings instead of centres to point to.
    has_centers = explanation.regions is not None
    subject = "Centres that corners point to, and boxes" if has_centers else "Embeddings and boxes"
    axes = sheet.picture(0, 2, image, subject)
    boxes = _draw_detections(axes, explanation, min_score, class_names)
    for corner in corners:
        for i in range(_num_drawn(corner.seen, min_score)):
            _draw_key(axes, corner, i, has_centers)
    handles = []
    if has_centers:
        handles += [line(x.color, f"{x.name} to its centre") for x in corners]
        handles.append(Patch(facecolor=BOX_COLOR, alpha=0.35, label="central region"))
    sheet.legend(0, 2, _side_by_side(handles, boxes), columns=2)

    if explanation.tl.sampling_points is not None:
        axes = sheet.picture(1, 0, grey, "Sampling points of the deformable convolution")
        size = image.shape[1::-1]
        sheet.legend(1, 0, [_draw_sampling_points(axes, x, size) for x in corners], columns=1)

    axes = sheet.picture(1, 1, image, "One pair of corners")
    outcome = explanation.outcomes(int(explanation.outcome[pair]))
    color = BOX_COLOR if outcome == explanation.outcomes.ACCEPTED else PROBLEM_COLOR
    if outcome != explanation.outcomes.NO_EXTENT:
        if has_centers:
            axes.add_patch(rectangle(explanation.regions[pair].tolist(), color, 1.0, fill=0.3))
        axes.add_patch(rectangle(explanation.boxes[pair].tolist(), color, 2.0, linestyle="--"))
    for corner in corners:
        _draw_key(axes, corner, corner.index, has_centers, width=2.2, mutation_scale=12)
        _mark_corner(axes, corner.seen.position[corner.index], corner, size=26)
    sheet.text(1, 1, _pair_lines(explanation, corners, pair, class_names), color)

    _draw_counts(sheet, 1, 2, explanation, outcome, min_score)
    return sheet.figure


def _num_drawn(seen: SeenCorners, min_score: float) -> int:
    """The first corners are drawn; they are sorted by score."""
    return min(int((seen.score >= min_score).sum()), _MAX_CORNERS)


def _mark_corner(axes: Axes, position: Tensor, corner: _Corner, size: float = 20) -> None:
    axes.plot(
        *position.tolist(),
        marker=corner.marker,
        markersize=size,
        markerfacecolor="none",
        markeredgecolor=corner.color,
        markeredgewidth=1.8,
        path_effects=outline(3.6),
        gid="corner",
    )


def _draw_key(
    axes: Axes, corner: _Corner, i: int, has_centers: bool, width: float = 1.6, **kwargs
) -> None:
    """Draws the centre that a corner points to as an arrow, or its embedding as a number."""
    start, key = corner.seen.position[i].tolist(), corner.seen.key[i].tolist()
    if has_centers:
        axes.add_patch(arrow(start, key, corner.color, width, **kwargs))
    else:
        axes.annotate(
            f"{key[0]:.2f}",
            start,
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=9,
            color=corner.color,
            path_effects=outline(2.0),
            gid="embedding",
        )


def _draw_detections(
    axes: Axes, explanation: Explanation, min_score: float, names: Optional[Sequence[str]]
) -> list[Patch]:
    """Draws numbered boxes with their central regions; returns their legend handles."""
    count = int((explanation.detection_scores >= min_score).sum())
    tl, br = explanation.detections[:count].unbind(dim=1)
    if explanation.regions is not None:
        for region in explanation.regions[tl, br].tolist():
            axes.add_patch(rectangle(region, BOX_COLOR, 0.8, fill=0.2))
    classes, scores = explanation.tl.cls[tl].tolist(), explanation.detection_scores.tolist()
    texts = [f"{class_name(names, cls)} {score:.2f}" for cls, score in zip(classes, scores)]
    return draw_numbered_boxes(axes, explanation.boxes[tl, br].tolist(), texts)


def _side_by_side(left: Sequence, right: Sequence) -> list:
    """Pads the handles of a legend with two columns, which Matplotlib fills column by column."""
    rows = max(len(left), len(right)) if right else 0
    blanks = [Patch(facecolor="none", label=" ") for _ in range(rows)]
    return [*left, *blanks[len(left) :], *right, *blanks[len(right) :]]


def _draw_sampling_points(axes: Axes, corner: _Corner, size: tuple[int, int]) -> Line2D:
    """Draws what one corner of the pair samples; returns the legend handle.

    Args:
        axes: in pixels of the image.
        corner: of the pair.
        size: (w, h) of the image, outside which points are counted.
    """
    points, color = corner.seen.sampling_points[corner.index], corner.color
    position = corner.seen.position[corner.index]
    x0, y0 = position.tolist()
    for x, y in points.tolist():
        axes.plot((x0, x), (y0, y), color=color, linewidth=0.9, alpha=0.8)
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
    _mark_corner(axes, position, corner, size=26)
    outside = int(((points < 0) | (points > points.new_tensor(size))).any(dim=1).sum())
    label = f"{len(points)} points of the {corner.name} corner in e"
    if outside:
        label += f" ({outside} outside)"
    return line(color, label, 1.5, marker="o", markeredgecolor="white")


def _pair_lines(
    explanation: Explanation,
    corners: Sequence[_Corner],
    pair: tuple[int, int],
    names: Optional[Sequence[str]],
) -> tuple[str, ...]:
    classes = ", ".join(
        f"{x.name}: {class_name(names, int(x.seen.cls[x.index]))} {x.seen.score[x.index]:.2f}"
        for x in corners
    )
    outcome = explanation.outcomes(int(explanation.outcome[pair]))
    final = (explanation.detections == explanation.detections.new_tensor(pair)).all(dim=1)
    score = float(explanation.detection_scores[final].sum())
    return (
        classes,
        f"score of the box {float(explanation.scores[pair]):.2f}"
        + ("; shaded: its central region" if explanation.regions is not None else ""),
        outcome.sentence.format(distance=float(explanation.distance[pair]), score=score),
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
    for y, outcome in enumerate(every):
        is_accepted = outcome.name == "ACCEPTED"
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
    axes.set(
        xscale="log",
        xlim=(0.7, max(every.values()) * 1.1),
        ylim=(len(every) - 0.4, -0.6),
        xticks=[],
    )
    axes.minorticks_off()
    axes.set_yticks(list(every), [x.label for x in every], fontsize=9.5)
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
