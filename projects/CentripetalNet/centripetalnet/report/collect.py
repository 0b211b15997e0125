"""One pass over images with G objects each: D detections, and how far each object came."""

from collections.abc import Sequence
from typing import NamedTuple, Union

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from torch import Tensor, nn

from ..explain import pair_outcomes, select_candidates
from ..modeling import CentripetalNet, CentripetalNetWithTTA
from ..modeling.selection import detections_of, scaled_to_output
from ..modeling.test_time_augmentation import View
from ..structures import Findings
from .oracles import NETWORK, ORACLES, match_view
from .reasons import corner_reach, miss_stages, wrong_pairs


class Scene(NamedTuple):
    """What one image adds to the report, in pixels of its file."""

    image_id: Union[int, str]
    stages: np.ndarray  # (G,) int8 Miss, see miss_stages
    is_wrong_pair: np.ndarray  # (D,) bool, see wrong_pairs
    detections: dict[str, np.ndarray]  # of ORACLES: (D, 6) float32 x0, y0, x1, y1, score, class


class Objects:
    """The annotations of a dataset, the class in [0, C) of each category, and names of classes."""

    def __init__(self, coco: COCO, class_of: dict[int, int], names: Sequence[str]):
        self.coco, self.class_of, self.names = coco, class_of, list(names)
        self.are_known = "annotations" in coco.dataset

    def of(self, image_id) -> list[dict]:
        """The annotations of one image but crowds."""
        found = self.coco.imgToAnns.get(image_id, ())
        return [x for x in found if not x.get("iscrowd") and x["category_id"] in self.class_of]

    def boxes_and_classes(self, image_id) -> tuple[Tensor, Tensor]:
        """(G, 4) x0, y0, x1, y1 in pixels of the file, and (G,)."""
        found = [(*x["bbox"], self.class_of[x["category_id"]]) for x in self.of(image_id)]
        table = torch.tensor(found, dtype=torch.float64).view(-1, 5)
        boxes = BoxMode.convert(table[:, :4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        return boxes.float(), table[:, 4].long()


class SceneEvaluator(DatasetEvaluator):
    """Makes a :class:`Scene` of each image from what the detector computes, by observing it."""

    def __init__(self, detector: Union[CentripetalNet, CentripetalNetWithTTA], objects: Objects):
        self._tta = detector if isinstance(detector, CentripetalNetWithTTA) else None
        self._model, self._objects = detector.model if self._tta else detector, objects
        self._find, self._model.find = self._model.find, self._observed_find
        self.reset()

    def reset(self) -> None:
        self._scenes: list[Scene] = []
        self._seen: list[list[tuple[Findings, list]]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for x, output, seen in zip(inputs, outputs, self._seen):
            self._scenes.append(self._scene(x, output["instances"], seen))
        self._seen = []

    def evaluate(self) -> list[Scene]:
        """All scenes in the main process, none in the others."""
        return [x for scenes in comm.gather(self._scenes, dst=0) for x in scenes]

    def _observed_find(self, images: list[Tensor]) -> list[Findings]:
        head = self._model.heads[-1]
        maps_of = {x.heatmap: [] for x in (head.tl, head.br)}

        def note(module: nn.Module, inputs: tuple[Tensor], heatmap: Tensor) -> None:
            maps_of[module] += zip(inputs[0].split(1), heatmap.split(1))

        hooks = [x.register_forward_hook(note) for x in maps_of]
        found = self._find(images)
        for hook in hooks:
            hook.remove()
        # Images of one canvas size were computed together, the sizes in the order of their first.
        sizes, seen = [x.canvas_size for x in found], [()] * len(found)
        order = sorted(range(len(found)), key=lambda i: sizes.index(sizes[i]))
        for i, *maps in zip(order, *maps_of.values()):
            seen[i] = (found[i], maps)
        self._seen += [seen] if self._tta else [[x] for x in seen]
        return found

    def _scene(self, x: dict, instances: Instances, seen: list) -> Scene:
        image_id, model, detections = x["image_id"], self._model, {NETWORK: _as_array(instances)}
        if not self._objects.are_known:
            return Scene(image_id, np.zeros(0), np.zeros(0), detections)
        boxes, classes = (y.to(model.device) for y in self._objects.boxes_and_classes(image_id))
        image, size, merged = x["image"], tuple(x["image"].shape[-2:]), {}
        scale = boxes.new_tensor((size[1] / x["width"], size[0] / x["height"]))
        views = self._tta.views(image) if self._tta else [View(image, 1.0, 1.0, False)]
        in_views = [CentripetalNetWithTTA.in_view(boxes * scale.repeat(2), y) for y in views]
        matched = [match_view(model, *y, z, classes) for y, z in zip(seen, in_views)]
        for name in ORACLES:
            of_views = [y.candidates[name] for y in matched]
            merged[name] = CentripetalNetWithTTA.merged(of_views, views)
            if name not in detections:
                found = detections_of([merged[name]], [size], model.selection)
                detections[name] = _as_array(scaled_to_output(found, [x])[0]["instances"])
        selected, stages, start = select_candidates(merged[NETWORK], model.selection), [], 0
        for view in matched:
            conditions = [y[0] for y in view.conditions]
            shape = conditions[0].shape
            mine = slice(start, start := start + shape.numel())
            flags = (y[mine].view(shape) for y in (selected.entered, selected.taken))
            outcome = pair_outcomes(conditions, *flags)
            names = model.matching.outcomes.__members__
            stages.append(miss_stages(view.near, view.corners, classes, outcome, names))
        found, cls = instances.pred_boxes.tensor.to(boxes), instances.pred_classes.to(classes)
        reach = corner_reach(boxes, model.stride / scale)
        is_wrong = wrong_pairs(found, cls[:, None] == classes, boxes, reach)
        # An object came as far as in its best view.
        stages = torch.stack(stages).amax(dim=0).cpu().numpy().astype(np.int8)
        return Scene(image_id, stages, is_wrong.cpu().numpy(), detections)


def _as_array(instances: Instances) -> np.ndarray:
    columns = instances.scores[:, None], instances.pred_classes[:, None]
    return torch.cat((instances.pred_boxes.tensor, *columns), dim=1).float().cpu().numpy()
