"""A figure of a training sample with its targets."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ..layers import render_bumps
from ..structures import BoxTargets, CornerTargets
from ..visualization.sheet import (
    BR_COLOR,
    INK,
    PROBLEM_COLOR,
    TL_COLOR,
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

# Cells that the close-up of a corner shows to each side.
_CELLS_AROUND = 3.5
_DASHES = (0, (2, 2))


class CornerMarks(NamedTuple):
    """The targets of one corner of M boxes as positions in pixels of the canvas."""

    cell: Tensor
    """(M, 4) x0, y0, x1, y1 of the corner cell."""
    corner: Tensor
    """(M, 2) the cell's origin plus offset: the exact corner."""
    guided_center: Tensor
    """(M, 2) the cell's origin plus or minus guiding shift."""
    centripetal_center: Tensor
    """(M, 2) the exact corner plus or minus centripetal shift."""


def corner_marks(
    targets: CornerTargets, inwards: int, map_size: tuple[int, int], canvas_size: tuple[int, int]
) -> CornerMarks:
    """Converts the targets of one corner to positions.

    Args:
        targets: of one image, M boxes.
        inwards: +1 for top-left corners, -1 for bottom-right ones.
        map_size: (H, W) cells.
        canvas_size: (h, w) pixels.
    """
    pixels_per_cell = targets.offset.new_tensor(
        (canvas_size[1] / map_size[1], canvas_size[0] / map_size[0])
    )
    column = targets.cell % map_size[1]
    row = torch.div(targets.cell, map_size[1], rounding_mode="floor")
    cell = torch.stack((column, row), dim=1)
    corner = (cell + targets.offset) * pixels_per_cell
    return CornerMarks(
        cell=torch.cat((cell * pixels_per_cell, (cell + 1) * pixels_per_cell), dim=1),
        corner=corner,
        guided_center=(cell + inwards * targets.guiding_shift) * pixels_per_cell,
        centripetal_center=corner + inwards * targets.centripetal_shift.exp() * pixels_per_cell,
    )


def targets_figure(
    image: np.ndarray,
    boxes: Tensor,
    classes: Tensor,
    targets: BoxTargets,
    map_size: tuple[int, int],
    class_names: Optional[Sequence[str]] = None,
    title: str = "",
) -> Figure:
    """Six panels: boxes, both heatmaps with corner cells, shifts, and two close-ups of corners.

    Args:
        image: (h, w, 3) RGB uint8, the augmented sample.
        boxes: (M, 4) pixels of it.
        classes: (M,) integers in [0, C).
        targets: of these boxes, with N = 1.
        map_size: (H, W) cells.
        class_names: of the dataset.
        title: of the figure.

    Returns:
        A Matplotlib figure without a window; :func:`rendered` converts it to an image.
    """
    canvas_size = image.shape[:2]
    corners = [
        (name, of_corner, corner_marks(of_corner, inwards, map_size, canvas_size), color)
        for name, of_corner, inwards, color in (
            ("Top-left", targets.tl, +1, TL_COLOR),
            ("Bottom-right", targets.br, -1, BR_COLOR),
        )
    ]
    sheet = Sheet(canvas_size, 2, 3, title)
    grey = faded(image)

    axes = sheet.picture(0, 0, image, "Objects")
    names = [class_name(class_names, x) for x in classes.tolist()]
    sheet.legend(0, 0, draw_numbered_boxes(axes, boxes.tolist(), names), columns=3)

    for column, (name, of_corner, marks, color) in enumerate(corners, start=1):
        axes = sheet.picture(0, column, grey, f"{name} corners: heatmap and corner cells")
        heatmap = _dense(of_corner, map_size)
        drawn = draw_heatmap(axes, heatmap, (0, 0, canvas_size[1], canvas_size[0]))
        for cell in marks.cell[of_corner.wins].tolist():
            axes.add_patch(rectangle(cell, color, 1.0))
        sheet.color_bar(0, column, drawn, "target, maximum over classes; outlined: corner cells")

    axes = sheet.picture(1, 0, image, "Shifts to the centres")
    for _, of_corner, marks, color in corners:
        for i in of_corner.wins.nonzero().flatten().tolist():
            _draw_shifts(axes, marks, i, color)
    shared = sum(int((~x.wins).sum()) for _, x, _, _ in corners)
    handles = [
        line(TL_COLOR, "centripetal shift, top-left"),
        line(BR_COLOR, "centripetal shift, bottom-right"),
        line(INK, "guiding shift", 1.2, linestyle=_DASHES),
    ]
    if shared:
        handles.append(Patch(facecolor="none", label=f"overridden by a later box: {shared}"))
    sheet.legend(1, 0, handles, columns=2)

    shown = _shown_box(boxes, targets)
    for column, (name, _, marks, color) in enumerate(corners, start=1):
        number = "" if shown is None else f" of object {shown + 1}"
        axes = sheet.picture(1, column, image, f"{name} corner{number}, enlarged")
        if shown is not None:
            _draw_close_up(axes, marks, shown, color, canvas_size, map_size)
    handles = [
        line(PROBLEM_COLOR, "offset: cell to exact corner", 2.4),
        line(TL_COLOR, "centripetal shift, from the corner", 2.2),
        Patch(facecolor="none", edgecolor=TL_COLOR, linewidth=2.2, label="corner cell"),
        line(INK, "guiding shift, from the cell", 1.8, linestyle=_DASHES),
    ]
    sheet.legend(1, 1, handles, columns=2)
    return sheet.figure


def _dense(targets: CornerTargets, map_size: tuple[int, int]) -> Tensor:
    """The target heatmap (H, W), maximum over classes."""
    planes = len(targets.heatmap.plane_start) - 1
    return render_bumps(targets.heatmap.bumps, (1, planes, *map_size))[0].amax(dim=0)


def _shown_box(boxes: Tensor, targets: BoxTargets) -> Optional[int]:
    """The largest box that is the target in both its corner cells, if there is one."""
    usable = targets.tl.wins & targets.br.wins
    if not usable.any():
        return None
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return int(area.masked_fill(~usable, -1).argmax())


def _draw_shifts(axes: Axes, marks: CornerMarks, i: int, color: str, width: float = 1.6) -> None:
    """Draws the centripetal shift as an arrow and the guiding shift as a thinner, dashed line."""
    start, end = marks.corner[i].tolist(), marks.centripetal_center[i].tolist()
    axes.add_patch(arrow(start, end, color, width))
    axes.plot(
        *zip(marks.cell[i, :2].tolist(), marks.guided_center[i].tolist()),
        color=INK,
        linewidth=width - 0.4,
        linestyle=_DASHES,
        path_effects=outline(width + 0.8),
    )


def _draw_close_up(
    axes: Axes,
    marks: CornerMarks,
    i: int,
    color: str,
    canvas_size: tuple[int, int],
    map_size: tuple[int, int],
) -> None:
    """Draws the cells around a corner, its cell, its offset and the start of both shifts."""
    pixel_size = np.array((canvas_size[1] / map_size[1], canvas_size[0] / map_size[0]))
    x0, y0, x1, y1 = marks.cell[i].tolist()
    center = np.array(((x0 + x1) / 2, (y0 + y1) / 2))
    # The aspect ratio of the panel, so that the close-up fills it.
    aspect = canvas_size[0] / canvas_size[1]
    reach = _CELLS_AROUND * pixel_size.max() * np.array((1, aspect)) / min(1, aspect)
    low, high = center - reach, center + reach
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
    for x in range(map_size[1] + 1):
        axes.axvline(x * pixel_size[0], color="white", linewidth=0.6, alpha=0.7)
    for y in range(map_size[0] + 1):
        axes.axhline(y * pixel_size[1], color="white", linewidth=0.6, alpha=0.7)
    axes.add_patch(rectangle(marks.cell[i].tolist(), color, 2.2))
    origin, corner = (x0, y0), marks.corner[i].tolist()
    _draw_shifts(axes, marks, i, color, 2.2)
    axes.add_patch(arrow(origin, corner, PROBLEM_COLOR, 2.4, mutation_scale=12))
    axes.plot(*corner, marker="o", markersize=7, markerfacecolor=color, markeredgecolor="white")
