import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from centripetalnet.explain import explanation_figure
from centripetalnet.modeling.centripetal_shift import ShiftOutcome
from centripetalnet.modeling.embedding import EmbeddingOutcome
from centripetalnet.structures import Explanation, SeenCorners
from centripetalnet.visualization.sheet import (
    BOX_COLOR,
    BR_COLOR,
    TL_COLOR,
    TL_MARKER,
    rendered,
)


def explained(size=(100, 120), outcome=ShiftOutcome.ACCEPTED):
    """One pair, from (0.2, 0.2) to (0.8, 0.8) of the image, whose centres are apart."""
    height, width = size

    def at(x, y):
        return torch.tensor([[x * width, y * height]])

    def seen(position, center):
        heatmap = torch.zeros(25, 30)
        heatmap[5, 6] = 0.9
        points = position[:, None] + torch.arange(9.0)[:, None] * width / 100
        return SeenCorners(
            heatmap, torch.tensor([0.9]), torch.tensor([0]), position, center, points
        )

    is_box = outcome.name == "ACCEPTED"
    regions = torch.cat((at(0.35, 0.35), at(0.65, 0.65)), dim=1)[None]
    explanation = Explanation(
        tl=seen(at(0.2, 0.2), at(0.5, 0.6)),
        br=seen(at(0.8, 0.8), at(0.5, 0.4)),
        map_extent=(0, 0, width, height),
        boxes=torch.cat((at(0.2, 0.2), at(0.8, 0.8)), dim=1)[None],
        regions=regions,
        scores=torch.tensor([[0.9]]),
        distance=torch.tensor([[0.1]]),
        outcomes=type(outcome),
        outcome=torch.tensor([[int(outcome)]]),
        detections=torch.zeros(int(is_box), 2, dtype=torch.long),
        detection_scores=torch.full((int(is_box),), 0.9),
    )
    if type(outcome) is ShiftOutcome:
        return explanation
    # Of embeddings there is nothing to point to.
    corners = {
        name: getattr(explanation, name)._replace(key=torch.tensor([[key]]), sampling_points=None)
        for name, key in (("tl", 0.25), ("br", -1.5))
    }
    return explanation._replace(regions=None, **corners)


def pixels(figure, panel, points, size):
    """(points, 3, 3, 3): the pixels drawn around points, given as fractions of the image size."""
    image = rendered(figure)
    axes = [x for x in figure.axes if x.get_xlim() == (0, size[1])][panel]
    x, y = axes.transData.transform(np.array(points) * size[::-1]).round().astype(int).T
    rows, columns = (
        image.shape[0] - 1 - y[:, None] + np.arange(-1, 2),
        x[:, None] + np.arange(-1, 2),
    )
    return image[rows[:, :, None], columns[:, None]]


def is_near(drawn, name):
    """Whether pixels have a colour, up to antialiasing."""
    return np.abs(drawn.astype(float) - np.array(to_rgb(name)) * 255).max(axis=-1) < 40


@pytest.mark.parametrize("size", [(64, 64), (1300, 2000), (100, 300)])
def test_arrows_lead_from_corners_to_their_centres_at_any_size(size):
    image = np.full((*size, 3), 255, np.uint8)
    figure = explanation_figure(image, explained(size), (0, 0))

    # A quarter of the way from corner to centre.
    drawn = pixels(figure, 2, [(0.275, 0.3), (0.725, 0.7), (0.1, 0.5)], size)

    assert is_near(drawn[0], TL_COLOR).any()
    assert is_near(drawn[1], BR_COLOR).any()
    assert (drawn[2] == 255).all()


def test_an_accepted_box_and_its_central_region_are_drawn():
    size = (100, 120)
    image = np.full((*size, 3), 255, np.uint8)
    figure = explanation_figure(image, explained(size), (0, 0))

    edge, inside, outside = pixels(figure, 2, [(0.6, 0.2), (0.4, 0.6), (0.7, 0.3)], size)

    assert is_near(edge, BOX_COLOR).any()
    assert (outside == 255).all() and not (inside == 255).any()


@pytest.mark.parametrize("score, drawn", [(0.95, 0), (0.5, 1)])
def test_boxes_with_lower_scores_are_not_drawn(score, drawn):
    figure = explanation_figure(
        np.zeros((100, 120, 3), np.uint8), explained(), (0, 0), min_score=score
    )

    panel = next(x for x in figure.axes if x.get_xlim() == (0, 120) and len(x.images) == 1)
    assert len([x for x in panel.patches if x.get_gid() == "box"]) == drawn


def test_heatmaps_cover_the_canvas():
    # Cells have 4 x 4 pixels; the peak is in row 5 and column 6.
    explanation = explained()._replace(map_extent=(-8, -12, 112, 88))

    figure = explanation_figure(np.full((100, 120, 3), 255, np.uint8), explanation, (0, 0))

    hot, cold = pixels(figure, 0, [(18 / 120, 10 / 100), (26 / 120, 10 / 100)], (100, 120))
    assert (hot[..., 2] < 150).all() and (cold == 255).all()


def test_sampling_points_of_the_chosen_pair_are_drawn():
    figure = explanation_figure(np.zeros((100, 120, 3), np.uint8), explained(), (0, 0))

    drawn = [
        line.get_xydata()
        for axes in figure.axes
        for line in axes.lines
        if line.get_gid() == "sampling points"
    ]

    expected = [x.sampling_points[0].numpy() for x in (explained().tl, explained().br)]
    assert all(np.allclose(a, b) for a, b in zip(drawn, expected)) and len(drawn) == 2


@pytest.mark.parametrize("outcome", [*ShiftOutcome, *EmbeddingOutcome])
def test_the_outcome_of_the_pair_is_written_below_it(outcome):
    figure = explanation_figure(
        np.zeros((64, 64, 3), np.uint8), explained((64, 64), outcome), (0, 0), ["zebra"]
    )

    texts = [x.get_text() for x in figure.texts]
    assert any(x.startswith("top-left: zebra 0.90") for x in texts)
    verdict = "Accepted" if outcome.name == "ACCEPTED" else "Rejected|Removed"
    assert any(x.startswith(tuple(verdict.split("|"))) for x in texts)


def test_texts_do_not_overlap_and_stay_inside_the_figure():
    figure = explanation_figure(
        np.zeros((90, 127, 3), np.uint8), explained((90, 127)), (0, 0), title="a picture"
    )
    rendered(figure)

    texts = [x for x in figure.texts if x.get_text()]
    for axes in figure.axes:
        texts += [*axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels(), axes.xaxis.label]
    for legend in figure.legends:
        texts += legend.get_texts()
    boxes = [x.get_window_extent() for x in texts if x.get_text().strip() and x.get_visible()]
    width, height = figure.canvas.get_width_height()
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:i]), texts[i]


def test_corners_are_marked_with_the_edges_that_meet_there():
    # Right and down; the y axis points up.
    assert TL_MARKER.vertices.tolist() == [[0, -1], [0, 0], [1, 0]]
