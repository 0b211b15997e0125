"""A detector whose corners are planted, and datasets that are made up."""

import contextlib
import io

import numpy as np
import torch
from conftest import small_config
from detectron2.modeling import build_model
from pycocotools.coco import COCO
from torch import nn

from centripetalnet.modeling.centripetal_shift import CornerShifts
from centripetalnet.modeling.embedding import CornerEmbeddings
from centripetalnet.report import Objects, Scene, SceneEvaluator
from centripetalnet.report.oracles import ORACLES

# Pixels of the images; their canvas has the same size.
SIDE = 127
CELL = SIDE / 32


class PlantedBranch(nn.Module):
    """Has the interface of a CornerBranch, and finds the planted corners."""

    def __init__(self, inwards, num_classes):
        super().__init__()
        self.inwards, self.num_classes = inwards, num_classes
        self.pooling, self.heatmap = nn.Identity(), PlantedHeatmap()
        self.plant([])

    def plant(self, corners):
        """Corners (x, y, x of the centre, y of the centre, class, score)."""
        logits = torch.full((1, self.num_classes, 32, 32), -20.0)
        self.shifts = torch.zeros(2, 32 * 32, 2)
        for x, y, center_x, center_y, cls, score in corners:
            column, row = min(int(x / CELL), 31), min(int(y / CELL), 31)
            logits[0, cls, row, column] = torch.tensor(score).logit()
            position, center = (
                torch.tensor((x, y)) / CELL,
                torch.tensor((center_x, center_y)) / CELL,
            )
            to_center = (center - position) * self.inwards
            assert (to_center > 0).all()
            self.shifts[0, row * 32 + column] = position - torch.tensor((column, row))
            self.shifts[1, row * 32 + column] = to_center.log()
        self.heatmap.logits = logits

    def at_cells(self, pooled, cells, needs_offset=True):
        offset, centripetal = self.shifts[:, cells]
        return CornerShifts(offset, centripetal, centripetal)


class PlantedEmbeddings(PlantedBranch):
    """The same for embeddings, which are the x of the planted centre, in pixels."""

    def plant(self, corners):
        super().plant(corners)
        self.embeddings = torch.zeros(32 * 32, 1)
        for x, y, center_x, *_ in corners:
            self.embeddings[min(int(y / CELL), 31) * 32 + min(int(x / CELL), 31)] = center_x

    def at_cells(self, pooled, cells, needs_offset=True):
        return CornerEmbeddings(self.shifts[0, cells], self.embeddings[cells])


class PlantedHeatmap(nn.Module):
    def forward(self, pooled):
        return self.logits


def planted_detector(num_classes=2, detector="hourglass", **selection):
    """A detector for images of SIDE x SIDE pixels, for its branches to be planted."""
    config = small_config(detector, MODEL__CENTRIPETALNET__NUM_CLASSES=num_classes, **selection)
    model = build_model(config).eval()
    branch = PlantedEmbeddings if detector == "embedding" else PlantedBranch
    model.heads[-1].tl = branch(+1, num_classes)
    model.heads[-1].br = branch(-1, num_classes)
    return model


def plant(model, *boxes):
    """Plants boxes (x0, y0, x1, y1, class, score) whose corners point to their centres."""
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1, _, _ in boxes]
    model.heads[-1].tl.plant([(*b[:2], *m, *b[4:]) for b, m in zip(boxes, middles)])
    model.heads[-1].br.plant([(*b[2:4], *m, *b[4:]) for b, m in zip(boxes, middles)])


def objects_of(*images, num_classes=2):
    """A dataset; each image is a list of objects (x0, y0, x1, y1, class)."""
    annotations = [
        {
            "image_id": i,
            "category_id": cls + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": 0,
        }
        for i, boxes in enumerate(images)
        for x0, y0, x1, y1, cls in boxes
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": SIDE, "height": SIDE} for i in range(len(images))],
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)],
        "annotations": [{"id": i + 1, **x} for i, x in enumerate(annotations)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    names = [x["name"] for x in coco.dataset["categories"]]
    return Objects(coco, {i + 1: i for i in range(num_classes)}, names)


@torch.no_grad()
def scenes_of(detector, objects, plant_image=lambda i: None):
    """Runs the detector on each image; ``plant_image`` is called before with the image's id."""
    evaluator = SceneEvaluator(detector, objects)
    for i in objects.coco.imgs:
        plant_image(i)
        image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        inputs = [{"image_id": i, "image": image, "height": SIDE, "width": SIDE}]
        evaluator.process(inputs, detector(inputs))
    return evaluator.evaluate()


def made_up(num_images, num_classes=4, per_image=7.2, detections=100, side=320, seed=0):
    """A dataset with crowds, and scenes with detections near the objects and elsewhere."""
    rng = np.random.default_rng(seed)
    images, scenes = [], []
    for i in range(num_images):
        count = rng.poisson(per_image)
        size = np.exp(rng.uniform(np.log(8), np.log(200), (count, 2)))
        corner = rng.uniform(0, side - size)
        boxes = np.concatenate((corner, corner + size), axis=1)
        classes = rng.choice(rng.integers(num_classes, size=3), count)
        images.append([(*box, int(cls)) for box, cls in zip(boxes.tolist(), classes)])
        near = rng.integers(count, size=detections) if count else np.zeros(0, int)
        found = boxes[near] + rng.normal(0, 0.12, (len(near), 4)) * np.tile(size[near], 2)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        is_right = rng.random(len(near)) < 0.7
        cls = np.where(is_right, classes[near], rng.integers(num_classes, size=len(near)))
        columns = found, rng.random((len(near), 1)), cls[:, None]
        array = np.concatenate(columns, axis=1).astype(np.float32)
        array = array[np.argsort(-array[:, 4])]
        stages = rng.integers(11, size=count).astype(np.int8)
        scenes.append(Scene(i, stages, rng.random(len(array)) < 0.1, dict.fromkeys(ORACLES, array)))
    objects = objects_of(*images, num_classes=num_classes)
    for i, annotation in enumerate(objects.coco.dataset["annotations"]):
        annotation["iscrowd"] = int(i % 40 == 39)
    return objects, [x._replace(stages=x.stages[: len(objects.of(x.image_id))]) for x in scenes]
