"""Figures of a dataset from the scenes of its images; matches and AP are pycocotools'."""

import contextlib
import gc
import io
import logging
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import COCOeval_opt
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .collect import Objects, Scene
from .oracles import NETWORK, ORACLES
from .reasons import FalseDetection, Miss, false_kinds

IOUS = (0.5, 0.75)
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's
UNMATCHED, IGNORED = -1, -2
_DETECTIONS_AT_ONCE = 170_000  # pycocotools needs kilobytes for each


class Dataset(NamedTuple):
    """All scenes as arrays of n detections and m objects; two rows are for the two ``IOUS``."""

    image: np.ndarray  # (n,) index of the scene
    detections: np.ndarray  # (n, 6) the network's, see Scene
    kind: np.ndarray  # (2, n) FalseDetection, -1 for others
    match: np.ndarray  # (2, n) index of the object, or UNMATCHED, or IGNORED for a crowd
    object_image: np.ndarray  # (m,) index of the scene
    boxes: np.ndarray  # (m, 4) x0, y0, x1, y1
    classes: np.ndarray  # (m,)
    reason: np.ndarray  # (2, m) Miss, -1 for objects that were found
    low_score: np.ndarray  # (2, m) Miss of those that only scores below the limit found, or -1
    score_limit: float  # where the detections have the highest F1 at the first of IOUS


def evaluate_boxes(
    objects: Objects, scenes: list[Scene], oracle: str = NETWORK, ious: Sequence[float] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """``COCOeval.eval["precision"]`` (10, 101, C, 4); ids that match (n,) for each of ``ious``."""
    # It logs each of many calls.
    logging.getLogger("detectron2.evaluation.fast_eval_api").setLevel(logging.WARNING)
    detections = np.concatenate([x.detections[oracle] for x in scenes])
    image_ids = [x.image_id for x in scenes for _ in x.detections[oracle]]
    matches, precision = np.full((len(ious), len(detections)), UNMATCHED, dtype=np.int64), []
    parts = min(len(detections) // _DETECTIONS_AT_ONCE + 1, len(objects.class_of))
    for categories in np.array_split(sorted(objects.class_of), parts):
        chosen = np.isin(detections[:, 5], [objects.class_of[x] for x in categories])
        coco = _coco_eval(COCOeval_opt, objects, detections, image_ids, np.flatnonzero(chosen))
        coco.params.catIds = categories.tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            coco.evaluate()
            coco.accumulate()
        precision.append(coco.eval["precision"][..., -1])
        coco.params.iouThrs = np.array(ious)
        for key in [key for key, iou in coco.ious.items() if len(ious) and len(iou)]:
            found = coco.evaluateImg(*key, coco.params.areaRng[0], coco.params.maxDets[-1])
            matched = np.where(found["dtMatches"] > 0, found["dtMatches"], UNMATCHED)
            matched[found["dtIgnore"].astype(bool)] = IGNORED
            matches[:, np.array(found["dtIds"], dtype=int) - 1] = matched
    order = np.argsort([objects.class_of[x] for x in sorted(objects.class_of)])
    return np.concatenate(precision, axis=2)[:, :, order], matches


def _coco_eval(kind: type, objects: Objects, detections, image_ids, chosen) -> COCOeval:
    """An evaluation of some detections, whose ids are their indices plus 1: 0 means none."""
    boxes = BoxMode.convert(detections[:, :4], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    category_of = {cls: category for category, cls in objects.class_of.items()}
    columns = (x[chosen].tolist() for x in (boxes, detections[:, 4], detections[:, 5]))
    found = [
        {"id": i + 1, "image_id": image_ids[i], "category_id": category_of[cls], "bbox": box}
        | {"score": score, "area": box[2] * box[3], "iscrowd": 0}
        for i, box, score, cls in zip(chosen.tolist(), *columns)
    ]
    results = COCO()
    results.dataset = {**objects.coco.dataset, "annotations": found}
    with contextlib.redirect_stdout(io.StringIO()):
        results.createIndex()
        return kind(objects.coco, results, "bbox")


def gather(objects: Objects, scenes: list[Scene]) -> tuple[Dataset, np.ndarray]:
    """Reasons of all missed objects and false detections; and see :func:`evaluate_boxes`."""
    precision, ids = evaluate_boxes(objects, scenes, ious=IOUS)
    index_of = {x["id"]: i for i, x in enumerate(y for s in scenes for y in objects.of(s.image_id))}
    match = np.vectorize(lambda x: index_of.get(x, x), otypes=[np.int64])(ids)
    kind, reason = np.full(match.shape, -1), np.full((len(IOUS), len(index_of)), -1)
    truth, det, obj = [objects.boxes_and_classes(x.image_id) for x in scenes], 0, 0
    for scene, (boxes, classes) in zip(scenes, truth):
        found = torch.from_numpy(scene.detections[NETWORK])
        dets, objs = slice(det, det := det + len(found)), slice(obj, obj := obj + len(boxes))
        iou, same = pairwise_iou(Boxes(found[:, :4]), Boxes(boxes)), found[:, 5:] == classes
        best = (iou * same).numpy().max(axis=0, initial=0)
        for i, threshold in enumerate(IOUS):
            is_found = np.isin(np.arange(objs.start, objs.stop), match[i, dets])
            flags = torch.from_numpy(is_found), torch.from_numpy(scene.is_wrong_pair)
            false = false_kinds(iou, same, *flags, threshold).numpy()
            kind[i, dets] = np.where(match[i, dets] == UNMATCHED, false, -1)
            is_taken = (scene.stages == Miss.BADLY_LOCALISED) & (best >= threshold)
            missed = np.where(is_taken, Miss.DETECTION_MATCHED_ANOTHER_OBJECT, scene.stages)
            reason[i, objs] = np.where(is_found, -1, missed)
    detections = np.concatenate([x.detections[NETWORK] for x in scenes])
    order = np.argsort(-detections[:, 4], kind="stable")
    order = order[match[0, order] != IGNORED]
    f1 = np.cumsum(match[0, order] >= 0) / (np.arange(len(order)) + 1 + len(index_of))
    limit = float(detections[order[f1.argmax()], 4]) if len(order) else 0.0
    stages = np.concatenate([x.stages for x in scenes])
    low = np.where(stages == Miss.BADLY_LOCALISED, Miss.LOW_SCORE, stages)
    sure = [np.isin(np.arange(len(stages)), x[detections[:, 4] >= limit]) for x in match]
    low = np.where((reason < 0) & ~np.array(sure), low, -1)
    numbers = np.arange(len(scenes))
    object_image, image = (np.repeat(numbers, [len(x[i]) for x in scenes]) for i in (1, 2))
    boxes, classes = (torch.cat(x).numpy() for x in zip(*truth))
    of_objects = object_image, boxes, classes, reason, low
    return Dataset(image, detections, kind, match, *of_objects, limit), precision


def average_precisions(precision: np.ndarray) -> dict[str, Optional[float]]:
    """The six numbers of ``COCOEvaluator`` from the precision of classes; None for no objects."""
    chosen = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    chosen.update({f"AP{name[0]}": precision[..., i] for i, name in enumerate(SIZES, 1)})
    known = {name: x[x > -1] for name, x in chosen.items()}
    return {name: float(x.mean() * 100) if x.size else None for name, x in known.items()}


def _counts(values: np.ndarray, kinds: type, areas: np.ndarray, classes: np.ndarray, num: int):
    """Of each kind the number in all, by size and by class."""
    tables = {}
    for kind in kinds:
        area, cls = areas[values == kind], classes[values == kind].astype(int)
        table = {x: int(((area >= a) & (area < b)).sum()) for x, (a, b) in SIZES.items()}
        table.update(all=len(area), classes=np.bincount(cls, minlength=num).tolist())
        tables[kind.name.lower()] = table
    return tables


@contextlib.contextmanager
def _without_gc():
    """The collector would look through millions of dicts again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_without_gc()
def summarize(objects: Objects, scenes: list[Scene]) -> tuple[dict, Dataset, np.ndarray]:
    """The figures of a dataset with annotations, and what :func:`gather` returns."""
    data, precision = gather(objects, scenes)
    aps = {NETWORK: average_precisions(precision)}
    for name in list(ORACLES)[1:]:
        aps[name] = average_precisions(evaluate_boxes(objects, scenes, name)[0])
    det, num = data.detections, precision.shape[2]
    is_sure = det[:, 4] >= data.score_limit
    of_det = (det[:, 2] - det[:, 0]) * (det[:, 3] - det[:, 1]), det[:, 5], num
    areas = np.array([y["area"] for x in scenes for y in objects.of(x.image_id)])
    missed, false, curves = {}, {}, {}
    for i, iou in enumerate(map(str, IOUS)):
        reasons = _counts(data.reason[i], Miss, areas, data.classes, num)
        for kind in Miss:
            reasons[kind.name.lower()]["low_score"] = int((data.low_score[i] == kind).sum())
        missed[iou] = {"sum": int((data.reason[i] >= 0).sum()), "reasons": reasons}
        sure = np.where(is_sure, data.kind[i], -1)
        false[iou] = {"sum": int((sure >= 0).sum())}
        false[iou]["reasons"] = _counts(sure, FalseDetection, *of_det)
        false[iou]["of_any_score"] = _counts(data.kind[i], FalseDetection, *of_det)
        curves[iou] = precision[5 * i, :, :, 0].T.round(4).tolist()
    counts = np.bincount(data.classes, minlength=num).tolist()
    figures = {"ap": aps[NETWORK], "objects": len(data.boxes), "score_limit": data.score_limit}
    figures.update(missed=missed, false_detections=false, oracles=aps, precision=curves)
    figures["by_class"] = [
        {"name": name, "objects": counts[i], **average_precisions(precision[:, :, [i]])}
        for i, name in enumerate(objects.names)
    ]
    figures.update(calibration=calibration(data), confusion=_confusion(objects, scenes, data, num))
    return figures, data, precision


def calibration(data: Dataset, bins: int = 10) -> dict:
    """Score and share of true detections in each bin, and the expected calibration error."""
    scores, hits = data.detections[:, 4], data.match[0]
    scores, hits = scores[hits != IGNORED], hits[hits != IGNORED] >= 0
    index = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=x, minlength=bins) for x in (scores, hits)]
    error = float(np.abs(sums[0] - sums[1]).sum() / max(len(scores), 1))
    score, precision = ((x / np.maximum(count, 1)).tolist() for x in sums)
    of_bins = {"count": count.tolist(), "score": score, "precision": precision}
    return {"expected_calibration_error": error, **of_bins}


def _confusion(objects: Objects, scenes: list[Scene], data: Dataset, num: int) -> list:
    """(C + 1, C + 1) objects x sure detections, matched whatever the class; last the background."""
    sure = np.flatnonzero(data.detections[:, 4] >= data.score_limit)
    image_ids = [scenes[i].image_id for i in data.image]
    coco = _coco_eval(COCOeval, objects, data.detections, image_ids, sure)
    coco.params.useCats, coco.params.iouThrs = 0, np.array(IOUS[:1])
    coco.params.areaRng = coco.params.areaRng[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.evaluate()
    matrix = np.zeros((num + 1, num + 1), dtype=int)
    matrix[:-1, -1] = np.bincount(data.classes, minlength=num)
    for image in filter(None, coco.evalImgs):
        is_counted = ~image["dtIgnore"][0].astype(bool)
        ids = np.array(image["dtIds"])[is_counted]
        for i, match in zip(ids, image["dtMatches"][0, is_counted]):
            row = objects.class_of[objects.coco.anns[int(match)]["category_id"]] if match else num
            matrix[row, int(data.detections[i - 1, 5])] += 1
            matrix[row, -1] -= row < num
    return matrix.tolist()
