"""What perfection of one part gives."""

import dataclasses

import numpy as np
import pytest
import torch
from planting import objects_of, plant, planted_detector, scenes_of

from centripetalnet.report.figures import average_precisions, evaluate_boxes
from centripetalnet.report.oracles import ORACLES


def ap_of(oracle, objects, scenes):
    return average_precisions(evaluate_boxes(objects, scenes, oracle)[0])["AP"]


def random_objects(count, generator, on_one_cell=False):
    """Boxes of two classes whose top-left corners are on different cells, or all on one."""
    cells = torch.randperm(20 * 20, generator=generator)[:count]
    x, y = (cells % 20) * 4.0 + 1, torch.div(cells, 20, rounding_mode="floor") * 4.0 + 1
    if on_one_cell:
        x, y = torch.full((2, count), 5.0)
    size = 8 + 36 * torch.rand(count, 2, generator=generator)
    classes = torch.randint(2, (count,), generator=generator)
    corners = torch.stack((x, y, x + size[:, 0], y + size[:, 1])).T
    return [(*box, cls) for box, cls in zip(corners.tolist(), classes.tolist())]


def test_all_oracles_together_find_every_object():
    generator = torch.Generator().manual_seed(0)
    images = [random_objects(count, generator) for count in (0, 1, 5, 20, 20)]
    objects = objects_of(*images)

    scenes = scenes_of(planted_detector(), objects)

    assert ap_of("nothing", objects, scenes) == 0
    # With this seed no two bottom-right corners of a class share a cell either.
    assert ap_of("all", objects, scenes) == 100
    assert sum(len(scene.detections["all"]) for scene in scenes) == 46


def test_of_more_than_k_objects_at_most_k_are_found():
    model = planted_detector()
    model.matching = dataclasses.replace(model.matching, topk=3)
    objects = objects_of(random_objects(6, torch.Generator().manual_seed(1)))

    (scene,) = scenes_of(model, objects)

    assert 0 < len(scene.detections["all"]) <= 3


def test_of_objects_of_a_class_with_one_corner_cell_one_is_found():
    boxes = random_objects(6, torch.Generator().manual_seed(1), on_one_cell=True)
    objects = objects_of([(*box, 0) for *box, _ in boxes])

    (scene,) = scenes_of(planted_detector(), objects)

    assert len(scene.detections["all"]) == 1


OBJECT = (20.0, 20.0, 80.0, 80.0)
MIDDLE = (50.0, 50.0)


@pytest.mark.parametrize(
    "perfect, tl, br",
    [
        ("heatmaps", (*OBJECT[:2], *MIDDLE, 0, 0.8), (*OBJECT[2:], *MIDDLE, 0, 0.0001)),
        ("positions", (25.0, 25.0, *MIDDLE, 0, 0.8), (*OBJECT[2:], *MIDDLE, 0, 0.8)),
        ("matching", (*OBJECT[:2], 22.0, 22.0, 0, 0.8), (*OBJECT[2:], *MIDDLE, 0, 0.8)),
        ("classes", (*OBJECT[:2], *MIDDLE, 1, 0.8), (*OBJECT[2:], *MIDDLE, 1, 0.8)),
    ],
)
def test_each_oracle_mends_its_part_only(perfect, tl, br):
    model = planted_detector()
    model.heads[-1].tl.plant([tl])
    model.heads[-1].br.plant([br])
    objects = objects_of([(*OBJECT, 0)])

    scenes = scenes_of(model, objects)

    exact = {x for x in ORACLES if _has_exact_box(scenes[0].detections[x])}
    # Perfect heatmaps have the right classes.
    assert exact == {perfect, "all"} | ({"heatmaps"} if perfect == "classes" else set())


def _has_exact_box(detections):
    """Whether there is a box at OBJECT, with the right class and a sure score."""
    near = np.abs(detections[:, :4] - OBJECT).max(axis=1, initial=0) < 0.01
    return bool((near & (detections[:, 4] > 0.5) & (detections[:, 5] == 0)).any())


def test_perfect_matching_rejects_pairs_of_two_objects():
    model = planted_detector()
    boxes = [(10.0, 10.0, 60.0, 60.0), (20.0, 20.0, 70.0, 70.0)]
    plant(model, *[(*box, 0, 0.9) for box in boxes])
    objects = objects_of([(*box, 0) for box in boxes])

    (scene,) = scenes_of(model, objects)

    sure = {x: int((scene.detections[x][:, 4] > 0.05).sum()) for x in ("nothing", "matching")}
    assert sure["nothing"] > 2
    assert sure["matching"] == 2
