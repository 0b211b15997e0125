"""Figures made of panels of equal size, laid out in inches so that texts do not overlap."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

# Okabe and Ito's palette, which colour-blind people can tell apart.
TL_COLOR, BR_COLOR = "#56b4e9", "#e69f00"
BOX_COLOR, PROBLEM_COLOR, INK = "#009e73", "#d55e00", "#222222"
# A corner is drawn as the two edges of the box that meet there.
TL_MARKER = Path([(0, -1), (0, 0), (1, 0)])
BR_MARKER = Path([(0, 1), (0, 0), (-1, 0)])

_DPI = 120
_PANEL_WIDTH = 4.7
_GAP = 0.32
_MARGIN = 0.35
_HEADER = 0.62
_TITLE = 0.36
# Height / width of panels; taller or wider images are fitted into them.
_MIN_ASPECT, _MAX_ASPECT = 0.45, 1.4
# Boxes that a legend names.
_MAX_LISTED = 5
# Points.
_NUMBER_SIZE = 10


def heat_colors() -> ListedColormap:
    """Colour map from transparent, so that the image shows through, to bright yellow."""
    colors = colormaps["inferno"](np.linspace(0.2, 1, 256))
    colors[:, 3] = np.clip(np.linspace(0, 2.5, 256), 0, 0.9)
    return ListedColormap(colors)


def outline(width: float = 1.5, color: str = "white") -> list:
    """Path effects that make thin lines and small text legible on any image."""
    return [Stroke(linewidth=width, foreground=color), Normal()]


def arrow(start, end, color: str, width: float = 1.6, mutation_scale: float = 9) -> FancyArrowPatch:
    """An arrow from one point to another."""
    return FancyArrowPatch(
        tuple(start),
        tuple(end),
        arrowstyle="-|>",
        mutation_scale=mutation_scale,
        joinstyle="miter",
        zorder=3,
        color=color,
        linewidth=width,
        shrinkA=0,
        shrinkB=0,
        path_effects=outline(width + 1.6),
    )


def rectangle(box, color: str, width: float = 1.8, fill: float = 0.0, **kwargs) -> Rectangle:
    """
    Args:
        box: x0, y0, x1, y1.
        color: of edge and interior.
        width: of the edge.
        fill: opacity of the interior.
    """
    x0, y0, x1, y1 = box
    return Rectangle(
        (x0, y0),
        x1 - x0,
        y1 - y0,
        facecolor=to_rgba(color, fill),
        edgecolor=color,
        linewidth=width,
        path_effects=outline(width + 1.6),
        **kwargs,
    )


def line(color: str, label: str, width: float = 2.0, **kwargs) -> Line2D:
    """Legend handle of a line."""
    return Line2D([], [], color=color, linewidth=width, label=label, **kwargs)


def faded(image: np.ndarray) -> np.ndarray:
    """The image in light grey, (h, w, 3), as a background for coloured marks."""
    grey = image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    return np.repeat((255 - 0.55 * (255 - grey))[:, :, None], 3, axis=2).round().astype(np.uint8)


def class_name(names: Optional[Sequence[str]], cls: int) -> str:
    """The name of a class, or its index if there are no names."""
    return names[cls] if names is not None and cls < len(names) else f"class {cls}"


def draw_heatmap(axes: Axes, heatmap: Tensor, extent: tuple[float, float, float, float]):
    """Draws a heatmap over an image; returns the mappable for a colour bar.

    Args:
        axes: in pixels of the image.
        heatmap: (H, W) in [0, 1].
        extent: x0, y0, x1, y1 that it covers, in pixels.
    """
    x0, y0, x1, y1 = extent
    return axes.imshow(
        heatmap.numpy(),
        cmap=heat_colors(),
        vmin=0,
        vmax=1,
        extent=(x0, x1, y1, y0),
        interpolation="nearest",
    )


def draw_numbered_boxes(
    axes: Axes, boxes: Sequence[Sequence[float]], texts: Sequence[str]
) -> list[Patch]:
    """Draws boxes; returns legend handles with their texts.

    The first ones are numbered; the last line of the legend counts the rest. A number that would
    hide another one is moved to the next corner of its box.

    Args:
        axes: in pixels of the image.
        boxes: x0, y0, x1, y1 in these pixels.
        texts: one for each box.
    """
    height, width = axes.get_ylim()[0], axes.get_xlim()[1]
    points_per_pixel = 72 / axes.figure.dpi
    listed = len(boxes) if len(boxes) <= _MAX_LISTED else _MAX_LISTED - 1
    placed: list[np.ndarray] = []
    for box in boxes:
        axes.add_patch(rectangle(box, BOX_COLOR, gid="box"))
    for i, box in enumerate(boxes[:listed]):
        # The number stays inside the image if the box does not.
        x0, x1 = np.clip(box[0::2], 0, width)
        y0, y1 = np.clip(box[1::2], 0, height)
        reach = np.array((_NUMBER_SIZE * (0.5 + 0.2 * len(str(i + 1))), _NUMBER_SIZE * 0.65))
        for x, y, right, up in ((x0, y1, 1, 1), (x0, y0, 1, -1), (x1, y1, -1, 1), (x1, y0, -1, -1)):
            shift = (right, up) * (reach + 1)
            middle = axes.transData.transform((x, y)) * points_per_pixel + shift
            if all((np.abs(middle - other) > 2 * reach).any() for other in placed):
                break
        placed.append(middle)
        axes.annotate(
            str(i + 1),
            (x, y),
            xytext=tuple(shift),
            textcoords="offset points",
            fontsize=_NUMBER_SIZE,
            fontweight="bold",
            color="white",
            horizontalalignment="center",
            verticalalignment="center",
            bbox={"boxstyle": "round,pad=0.12", "facecolor": BOX_COLOR, "edgecolor": "none"},
        )
    lines = [f"{i + 1}  {text}" for i, text in enumerate(texts[:listed])]
    if len(boxes) > listed:
        lines.append(f"and {len(boxes) - listed} more")
    return [Patch(facecolor="none", edgecolor=BOX_COLOR, linewidth=1.5, label=x) for x in lines]


class Sheet:
    """A figure with a header and rows of panels, each with a title above and a strip below."""

    def __init__(
        self,
        picture_size: tuple[int, int],
        rows: int,
        columns: int,
        header: str,
        strip: float = 0.85,
        min_panel_height: float = 0.0,
    ):
        """
        Args:
            picture_size: (h, w) of the images in the panels.
            rows, columns: of panels.
            header: a line above the panels.
            strip: inches below each panel, for its legend.
            min_panel_height: inches.
        """
        height, width = picture_size
        aspect = min(max(height / width, _MIN_ASPECT), _MAX_ASPECT)
        self.panel_height = max(_PANEL_WIDTH * aspect, min_panel_height)
        self.strip = strip
        self.width = 2 * _MARGIN + columns * _PANEL_WIDTH + (columns - 1) * _GAP
        self.height = _HEADER + rows * (_TITLE + self.panel_height + strip)
        self.figure = Figure((self.width, self.height), dpi=_DPI, facecolor="white")
        self.figure.text(
            _MARGIN / self.width,
            1 - 0.2 / self.height,
            header,
            fontsize=13,
            color=INK,
            verticalalignment="top",
        )

    def _bottom(self, row: int) -> float:
        """Inches from the lower edge of the figure to that of a panel."""
        return self.height - _HEADER - (row + 1) * (_TITLE + self.panel_height) - row * self.strip

    @staticmethod
    def _left(column: int) -> float:
        return _MARGIN + column * (_PANEL_WIDTH + _GAP)

    def _inches(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Empty axes at a place of the figure."""
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def axes(self, row: int, column: int, inset: tuple[float, float, float, float] = (0,) * 4):
        """The empty axes of a panel, with inches left free at the left, bottom, right and top."""
        left, bottom, right, top = inset
        return self._inches(
            self._left(column) + left,
            self._bottom(row) + bottom,
            _PANEL_WIDTH - left - right,
            self.panel_height - bottom - top,
        )

    def title(self, row: int, column: int, text: str) -> None:
        """Writes the letter and the title of a panel."""
        x = self._left(column) / self.width
        y = (self._bottom(row) + self.panel_height + 0.1) / self.height
        columns = round((self.width - 2 * _MARGIN + _GAP) / (_PANEL_WIDTH + _GAP))
        letter = chr(ord("a") + row * columns + column)
        self.figure.text(x, y, letter, fontsize=12, fontweight="bold", color=INK)
        self.figure.text(x + 0.2 / self.width, y, text, fontsize=12, color=INK)

    def picture(self, row: int, column: int, image: np.ndarray, title: str) -> Axes:
        """A panel with an image. Its axes are in pixels of the image.

        Args:
            row, column: of the panel.
            image: (h, w, 3) RGB uint8 of any size; it fills the panel.
            title: of the panel.
        """
        axes = self.axes(row, column)
        height, width = image.shape[:2]
        # Pixel i covers i to i + 1, as in boxes.
        axes.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], autoscale_on=False)
        for spine in axes.spines.values():
            spine.set(color="#999999", linewidth=0.6)
        self.title(row, column, title)
        return axes

    def color_bar(self, row: int, column: int, mappable, label: str) -> None:
        """Draws a colour bar into the strip of a panel."""
        axes = self._inches(
            self._left(column) + 0.25, self._bottom(row) - 0.22, _PANEL_WIDTH - 0.5, 0.11
        )
        # Transparent colours need the same grey behind them as on the image.
        axes.set_facecolor("#aaaaaa")
        bar = self.figure.colorbar(mappable, cax=axes, orientation="horizontal")
        bar.ax.tick_params(labelsize=9, length=2, pad=2, colors=INK)
        bar.set_label(label, fontsize=10, color=INK, labelpad=2)
        bar.outline.set(linewidth=0.5, edgecolor="#999999")

    def legend(self, row: int, column: int, handles: Sequence, columns: int = 2) -> None:
        """Draws a legend into the strip of a panel."""
        if not handles:
            return
        anchor = (self._left(column) - 0.06) / self.width, (self._bottom(row) - 0.05) / self.height
        legend = self.figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=anchor,
            ncol=columns,
            fontsize=9.5,
            frameon=False,
            borderaxespad=0,
            borderpad=0.3,
            handlelength=1.8,
            columnspacing=1.4,
            labelspacing=0.35,
        )
        for text in legend.get_texts():
            text.set_color(INK)

    def text(self, row: int, column: int, lines: Sequence[str], color: str) -> None:
        """Writes lines into the strip of a panel, the last one bold and in this colour."""
        for i, text in enumerate(lines):
            is_last = i == len(lines) - 1
            self.figure.text(
                self._left(column) / self.width,
                (self._bottom(row) - 0.1 - 0.2 * i) / self.height,
                text,
                fontsize=10,
                color=color if is_last else INK,
                fontweight="bold" if is_last else "normal",
                verticalalignment="top",
            )


def rendered(figure: Figure) -> np.ndarray:
    """A figure as image, (height, width, 3) RGB uint8, without a window or global state."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
