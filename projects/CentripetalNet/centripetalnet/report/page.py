"""The page and its pictures."""

import json
import os
from contextlib import suppress
from enum import IntEnum
from typing import Callable

import jinja2
import numpy as np
from detectron2.data.detection_utils import read_image

from ..explain import choose_pair, explain, explanation_figure
from ..io.files import atomic_file
from ..modeling import CentripetalNet
from ..visualization import rendered
from . import plots
from .collect import Objects, Scene
from .figures import IOUS, SIZES, UNMATCHED, Dataset, summarize
from .oracles import NETWORK
from .reasons import FalseDetection, Miss

_NUM_PICTURES, _SHEET_WIDTH = 20, 1300  # of each kind; pixels


def label_of(kind: IntEnum) -> str:
    """The words of a reason; the template says what to do about it."""
    return kind.name.lower().replace("_", " ")


def draw_pictures(
    scenes: list[Scene], data: Dataset, names: list[str], model: CentripetalNet, input_of: Callable
) -> tuple[list[dict], list[dict]]:
    """The images with most lost objects and sure false detections; the surest false detections.

    ``input_of`` gives the model's input of an image id. Values that begin "data:" are pictures.
    """
    scores, is_false = data.detections[:, 4], data.kind[0] >= 0
    is_sure, lost = scores >= data.score_limit, np.maximum(data.reason[0], data.low_score[0])
    of_objects = [names[x] for x in data.classes]
    for j in np.flatnonzero(lost >= 0):
        kind = Miss.LOW_SCORE if data.low_score[0, j] >= 0 else Miss(lost[j])
        of_objects[j] += f": {label_of(kind)}"

    def label(j: int) -> str:
        text = f"{names[int(data.detections[j, 5])]} {scores[j]:.2f}"
        return f"{text}: {label_of(FalseDetection(data.kind[0, j]))}" if is_false[j] else text

    def image_of(i: int) -> tuple[np.ndarray, dict, dict]:
        inputs = input_of(scenes[i].image_id)
        name = {"file_name": os.path.basename(inputs["file_name"])}
        return read_image(inputs["file_name"], format="RGB"), inputs, name

    errors = np.bincount(data.object_image[lost >= 0], minlength=len(scenes))
    errors += np.bincount(data.image[is_false & is_sure], minlength=len(scenes))
    worst, false = [], []
    order = np.argsort(-errors, kind="stable")[:_NUM_PICTURES]
    for i in order[errors[order] > 0]:
        image, inputs, found = image_of(i)
        mine = np.flatnonzero(data.object_image == i)
        shown = np.flatnonzero((data.image == i) & is_sure & (data.match[0] >= UNMATCHED))
        found["missed"] = int((data.reason[0, mine] >= 0).sum())
        found["low_score"] = int((data.low_score[0, mine] >= 0).sum())
        found["false"] = int(is_false[shown].sum())
        args = data.boxes[mine], [of_objects[j] for j in mine], lost[mine] < 0
        found["objects"] = plots.draw_boxes(image, *args)
        args = data.detections[shown, :4], [label(j) for j in shown], ~is_false[shown]
        found["detected"] = plots.draw_boxes(image, *args)
        if found["missed"] or found["low_score"]:
            # Missed ones before those that were found with a low score.
            j = min(mine[lost[mine] >= 0], key=lambda j: (data.reason[0, j] < 0, lost[j]))
            title = f"{of_objects[j]}, at {data.boxes[j].round().astype(int).tolist()}"
            if data.low_score[0, j] >= 0:
                title += f"; its own corners: {label_of(Miss(lost[j]))}"
            explanation = explain(model, inputs["image"], image.shape[:2])
            middle = tuple(((data.boxes[j, :2] + data.boxes[j, 2:]) / 2).tolist())
            pair = choose_pair(explanation)
            # Perhaps no pair could be a box of this class.
            with suppress(ValueError):
                pair = choose_pair(explanation, middle, int(data.classes[j]))
            sheet = explanation_figure(image, explanation, pair, names, title)
            found["sheet"] = plots.jpeg(rendered(sheet), _SHEET_WIDTH)
        worst.append(found)
    order = np.argsort(np.where(is_false, -scores, 1), kind="stable")[:_NUM_PICTURES]
    for j in order[is_false[order]]:
        image, _, found = image_of(data.image[j])
        near = np.flatnonzero(data.object_image == data.image[j])
        boxes = np.concatenate((data.boxes[near], data.detections[[j], :4]))
        labels = [names[k] for k in data.classes[near]] + [label(j)]
        are_good = [True] * len(near) + [False]
        found["picture"] = plots.draw_boxes(image, boxes, labels, are_good)
        false.append({**found, "label": label(j), "box": data.detections[j, :4].tolist()})
    return worst, false


def write_report(
    about: dict, objects: Objects, scenes: list[Scene], model: CentripetalNet, input_of: Callable
) -> str:
    """Writes ``report.json`` and ``report.html`` and returns the path of the page.

    ``about`` has ``folder``, ``dataset``, ``weights``, ``tta``, and ``settings`` with ``name``,
    ``AP`` and ``seconds`` of each; for the rest see :func:`draw_pictures`.
    """
    found = np.concatenate([x.detections[NETWORK] for x in scenes])
    report = {**about, "ious": list(IOUS), "sizes": list(SIZES), "classes": objects.names}
    scores = [found[found[:, 5] == i, 4] for i in range(len(objects.names))]
    report["detected"] = [(len(x), int((x >= 0.5).sum())) for x in scores]
    report.update(images=len(scenes), detections=len(found))
    drawn = {}
    if objects.are_known:
        figures, data, precision = summarize(objects, scenes)
        report.update(figures)
        worst = draw_pictures(scenes, data, objects.names, model, input_of)
        drawn["pictures"], drawn["false_pictures"] = worst
        for key, items in drawn.items():
            report[key] = [{k: v for k, v in x.items() if str(v)[:5] != "data:"} for x in items]
        drawn["precision_recall"] = plots.precision_recall(precision[..., 0], objects.names)
    texts = {"report.json": json.dumps(report)}
    pages = jinja2.Environment(loader=jinja2.PackageLoader(__package__, "."), autoescape=True)
    texts["report.html"] = pages.get_template("template.html").render(r=report, drawn=drawn)
    for name, text in texts.items():
        with atomic_file(path := os.path.join(about["folder"], name)) as file:
            file.write(text)
    return path
