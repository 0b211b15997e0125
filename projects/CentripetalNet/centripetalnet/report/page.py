"""The page and its pictures."""

import json
import math
import os
from collections.abc import Sequence
from typing import Callable

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

# Of each kind on the page.
_NUM_PICTURES = 20
_SHEET_WIDTH = 1300
# What each reason is called, and what to do about it.
_MISSED = {
    Miss.NO_CORNER: ("neither corner fired", "train longer, on more such objects, at larger sizes"),
    Miss.NO_TOP_LEFT: ("top-left corner did not fire", "look at what hides or cuts these corners"),
    Miss.NO_BOTTOM_RIGHT: ("bottom-right corner did not fire", "as for top-left"),
    Miss.OTHER_CLASS: ("corners of another class", "check the labels; more samples of the class"),
    Miss.NO_EXTENT: ("corners cross", "for objects of a cell or two: larger INPUT.MIN_SIZE_TEST"),
    Miss.TL_OUTSIDE: ("top-left centre outside", "train the shifts longer; larger CENTRAL_REGION"),
    Miss.BR_OUTSIDE: ("bottom-right centre outside", "as for top-left"),
    Miss.FAR_APART: ("centres apart", "train the shifts longer; larger MAX_CENTER_AREA"),
    Miss.SCORE_TOO_LOW: ("below the candidates' limit", "larger MAX_CANDIDATES"),
    Miss.SUPPRESSED: ("removed by soft-NMS", "larger DETECTIONS_PER_IMAGE; other SOFT_NMS"),
    Miss.ACCEPTED: ("localised worse than the IoU", "exacter annotations; AVERAGE_CELLS"),
    Miss.OTHER_OBJECT: ("its detection matched another", "objects annotated twice? Crowds?"),
    Miss.LOW_SCORE: ("only the score is low", "train longer, on more such objects"),
}
_FALSE = {
    FalseDetection.DUPLICATE: ("duplicate", "smaller SOFT_NMS.SIGMA"),
    FalseDetection.OTHER_CLASS: ("wrong class", "check the labels; more samples of both classes"),
    FalseDetection.WRONG_PAIR: ("wrong pair", "train the shifts longer; smaller CENTRAL_REGION"),
    FalseDetection.BADLY_LOCALISED: ("badly localised", "exacter annotations; AVERAGE_CELLS"),
    FalseDetection.CLASS_AND_LOCATION: ("wrong class, badly localised", "as for both"),
    FalseDetection.BACKGROUND: ("background", "objects without annotation? More such images"),
}
_TEXTS = {kind.name.lower(): text for kind, text in [*_MISSED.items(), *_FALSE.items()]}
# Both have one of this name.
_TEXTS_OF_FALSE = {**_TEXTS, "other_class": _FALSE[FalseDetection.OTHER_CLASS]}


def draw_pictures(
    scenes: list[Scene],
    data: Dataset,
    records: dict,
    names: Sequence[str],
    model: CentripetalNet,
    mapper: Callable[[dict], dict],
) -> tuple[list[dict], list[dict]]:
    """The worst images and the worst false detections, drawn.

    Args:
        scenes, data: of the dataset.
        records: of each image id, in Detectron2's dataset format.
        names: of the classes.
        model: for the sheets that explain.
        mapper: makes the model's input of a record.

    Returns:
        The images with most lost objects and sure false detections, and the false detections with
        the highest scores. Values that begin with "data:" are pictures.
    """
    scores, is_false = data.detections[:, 4], data.kind[0] >= 0
    is_sure, lost = scores >= data.score_limit, np.maximum(data.reason[0], data.low_score[0])
    of_objects = [names[x] for x in data.classes]
    for j in np.flatnonzero(lost >= 0):
        text = ": low score" if data.low_score[0, j] >= 0 else f": {_MISSED[Miss(lost[j])][0]}"
        of_objects[j] += text

    def label(j: int) -> str:
        text = f"{names[int(data.detections[j, 5])]} {scores[j]:.2f}"
        return f"{text}: {_FALSE[FalseDetection(data.kind[0, j])][0]}" if is_false[j] else text

    def image_of(i: int) -> tuple[np.ndarray, dict, dict]:
        record = records[scenes[i].image_id]
        name = {"file_name": os.path.basename(record["file_name"])}
        return read_image(record["file_name"], format="RGB"), record, name

    errors = np.bincount(data.object_image[lost >= 0], minlength=len(scenes))
    errors += np.bincount(data.image[is_false & is_sure], minlength=len(scenes))
    worst, false = [], []
    for i in np.argsort(-errors, kind="stable")[:_NUM_PICTURES]:
        if not errors[i]:
            break
        image, record, found = image_of(i)
        mine = np.flatnonzero(data.object_image == i)
        shown = np.flatnonzero((data.image == i) & is_sure & (data.match[0] >= UNMATCHED))
        found["missed"] = int((data.reason[0, mine] >= 0).sum())
        found["low_score"] = int((data.low_score[0, mine] >= 0).sum())
        found["false"] = int(is_false[shown].sum())
        labels = [of_objects[j] for j in mine], [label(j) for j in shown]
        boxes = data.boxes[mine], data.detections[shown, :4]
        found["objects"] = plots.draw_boxes(image, boxes[0], labels[0], lost[mine] < 0)
        found["detected"] = plots.draw_boxes(image, boxes[1], labels[1], ~is_false[shown])
        if found["missed"] or found["low_score"]:
            # Missed ones before those that were found with a low score.
            j = min(mine[lost[mine] >= 0], key=lambda j: (data.reason[0, j] < 0, lost[j]))
            title = f"{of_objects[j]}, at {data.boxes[j].round().astype(int).tolist()}"
            if data.low_score[0, j] >= 0:
                title += f"; its own corners: {_MISSED[Miss(lost[j])][0]}"
            explanation = explain(model, mapper(record)["image"], image.shape[:2])
            middle = tuple(((data.boxes[j, :2] + data.boxes[j, 2:]) / 2).tolist())
            try:
                pair = choose_pair(explanation, middle, int(data.classes[j]))
            except ValueError:
                # No pair could be a box of this class.
                pair = choose_pair(explanation)
            sheet = explanation_figure(image, explanation, pair, names, title)
            found["sheet"] = plots.jpeg(rendered(sheet), _SHEET_WIDTH)
        worst.append(found)
    for j in np.argsort(np.where(is_false, -scores, 1), kind="stable")[:_NUM_PICTURES]:
        if is_false[j]:
            image, _, found = image_of(data.image[j])
            near = np.flatnonzero(data.object_image == data.image[j])
            boxes = np.concatenate((data.boxes[near], data.detections[[j], :4]))
            labels = [names[k] for k in data.classes[near]] + [label(j)]
            are_good = [True] * len(near) + [False]
            found["picture"] = plots.draw_boxes(image, boxes, labels, are_good)
            false.append({**found, "label": label(j), "box": data.detections[j, :4].tolist()})
    return worst, false


def write_report(
    folder: str,
    about: dict,
    objects: Objects,
    scenes: list[Scene],
    names: Sequence[str],
    records: dict,
    model: CentripetalNet,
    mapper: Callable[[dict], dict],
) -> str:
    """Writes ``report.json`` and ``report.html``; returns the path of the page.

    Args:
        folder: of the files.
        about: figures of the run: ``dataset``, ``weights``, ``tta``, and ``settings`` as for
            :func:`plots.speed`.
        objects: of the dataset, with or without annotations.
        scenes, names, records, model, mapper: see :func:`draw_pictures`.

    Raises:
        ModuleNotFoundError: if jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the report needs jinja2 ({error}): python -m pip install jinja2", name=error.name
        ) from error
    found = np.concatenate([x.detections[NETWORK] for x in scenes])
    report = {**about, "ious": list(IOUS), "sizes": list(SIZES), "classes": list(names)}
    report.update(images=len(scenes), detections=len(found), detected=[])
    for i, name in enumerate(names):
        scores = found[found[:, 5] == i, 4]
        sure = int((scores >= 0.5).sum())
        report["detected"].append({"name": name, "all": len(scores), "sure": sure})
    drawn = {"speed": plots.speed(about["settings"])}
    if objects.are_known:
        figures, data, precision = summarize(objects, scenes, names)
        report.update(figures)
        worst = draw_pictures(scenes, data, records, names, model, mapper)
        report["pictures"], report["false_pictures"] = worst
        drawn["precision_recall"] = plots.precision_recall(precision[..., 0], names)
        drawn["confusion"] = plots.confusion_matrix(figures["confusion"], names)
        drawn["reliability"] = plots.reliability(figures["calibration"])
    loader = jinja2.FileSystemLoader(os.path.dirname(__file__))
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("template.html")
    of_page = {"texts": _TEXTS, "texts_of_false": _TEXTS_OF_FALSE, "plots": drawn}
    page, path = template.render(r=_clean(report), **of_page), os.path.join(folder, "report.html")
    for name, text in ((path, page), ("report.json", json.dumps(_clean(report, pictures=False)))):
        with atomic_file(os.path.join(folder, name)) as file:
            file.write(text)
    return path


def _clean(value, pictures: bool = True):
    """With None for NaN, which JSON lacks, and perhaps without pictures."""
    if isinstance(value, dict):
        kept = {key: x for key, x in value.items() if pictures or not str(x)[:5] == "data:"}
        return {key: _clean(x, pictures) for key, x in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(x, pictures) for x in value]
    return None if isinstance(value, float) and math.isnan(value) else value
