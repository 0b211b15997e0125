"""The silhouettes dataset: reproducible bytes, correct annotations, untrusted sources."""

import gzip
import importlib.util
import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from few_images import FEW
from pycocotools import mask as mask_util

from centripetalnet.data.datasets import SilhouettesSpec, build_silhouettes, register_silhouettes
from centripetalnet.data.datasets.silhouettes import builder, sources


@pytest.fixture
def dataset(datasets):
    return datasets / "silhouettes"


def all_bytes(root):
    return {str(x.relative_to(root)): x.read_bytes() for x in root.rglob("*") if x.is_file()}


def test_two_builds_of_one_spec_are_equal_byte_for_byte(dataset, tmp_path):
    build_silhouettes(str(tmp_path / "again"), FEW)

    assert len(all_bytes(dataset)) == FEW.num_train + FEW.num_val + 3
    assert all_bytes(tmp_path / "again") == all_bytes(dataset)


def test_train_and_val_share_no_outline(dataset):
    outlines = sources.load_outlines()

    for train, val in zip(outlines["train"], outlines["val"]):
        assert len(train) > len(val) > 50
        assert not {x.source_index for x in train} & {x.source_index for x in val}
    for split, classes in outlines.items():
        content = json.loads((dataset / "annotations" / f"{split}.json").read_text())
        for annotation in content["annotations"]:
            own = classes[annotation["category_id"] - 1]
            assert annotation["outline"] in {x.source_index for x in own}


def test_mirrored_outline_counts_as_the_same_animal():
    rng = np.random.default_rng(0)
    shapes = [(rng.random((20, 15)) > 0.5).astype(np.float32) for _ in range(3)]
    shapes.append(np.ascontiguousarray(shapes[1][:, ::-1]))
    outlines = [sources.Outline(i, shape) for i, shape in enumerate(shapes)]

    assert sources.duplicate_groups(outlines) == [[0], [1, 3], [2]]


def test_regions_of_the_photographs_are_disjoint(monkeypatch):
    monkeypatch.setattr(cv2, "imread", lambda _: np.arange(50 * 3).reshape(1, 50, 3))

    regions = sources.load_regions()

    for train, val in zip(regions["train"], regions["val"]):
        assert train.size and val.size and not np.intersect1d(train, val).size


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_are_tight_around_disjoint_masks_inside_the_image(dataset, split):
    coco = json.loads((dataset / "annotations" / f"{split}.json").read_text())
    assert {x["image_id"] for x in coco["annotations"]} == {x["id"] for x in coco["images"]}

    for image in coco["images"]:
        painted = np.zeros((image["height"], image["width"]), int)
        assert cv2.imread(str(dataset / split / image["file_name"])).shape == (*painted.shape, 3)
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = mask_util.decode(annotation["segmentation"])
                rows, columns = np.nonzero(mask)
                x, y, width, height = annotation["bbox"]
                assert (x, y) == (columns.min(), rows.min())
                assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
                assert annotation["area"] == mask.sum()
                painted += mask
        assert painted.max() == 1


@pytest.mark.usefixtures("datasets")
def test_coco_evaluator_gives_100_to_the_ground_truth():
    records = DatasetCatalog.get("silhouettes_val")
    evaluator = COCOEvaluator("silhouettes_val", tasks=("bbox", "segm"), distributed=False)
    evaluator.reset()

    for record in records:
        found = Instances((record["height"], record["width"]))
        truth = record["annotations"]
        boxes = torch.tensor([x["bbox"] for x in truth])
        found.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
        found.scores = torch.ones(len(truth))
        found.pred_classes = torch.tensor([x["category_id"] for x in truth])
        found.pred_masks = [mask_util.decode(x["segmentation"]) for x in truth]
        evaluator.process([record], [{"instances": found}])
    results = evaluator.evaluate()

    assert (results["bbox"]["AP"], results["segm"]["AP"]) == pytest.approx((100, 100))


def test_first_use_builds_in_the_folder_of_the_environment(dataset, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    register_silhouettes(spec=SilhouettesSpec(num_train=2, num_val=1))
    try:
        assert os.listdir(tmp_path) == ["elsewhere"]
        monkeypatch.setenv("DETECTRON2_DATASETS", "chosen")
        files = [x["file_name"] for x in DatasetCatalog.get("silhouettes_train")]
        # Training and evaluation read the same files, even if the environment changes.
        monkeypatch.setenv("DETECTRON2_DATASETS", "later")
        monkeypatch.chdir(tmp_path / "elsewhere")
        files += [x["file_name"] for x in DatasetCatalog.get("silhouettes_val")]
        annotations = MetadataCatalog.get("silhouettes_val").json_file
    finally:
        register_silhouettes(str(dataset), FEW)

    root = tmp_path / "chosen" / "silhouettes"
    assert len(files) == 3 and sorted(map(Path, files)) == sorted(root.glob("*/*.png"))
    assert annotations == str(root / "annotations" / "val.json")
    assert sorted(os.listdir(tmp_path)) == ["chosen", "elsewhere"]


def test_of_concurrent_builders_the_first_to_finish_wins(monkeypatch, tmp_path):
    root = tmp_path / "shared"

    def paint_after_another_builder_has_finished(*args):
        monkeypatch.undo()
        build_silhouettes(str(root), FEW)
        (root / "first").touch()
        return builder.compose_image(*args)

    monkeypatch.setattr(builder, "compose_image", paint_after_another_builder_has_finished)
    build_silhouettes(str(root), FEW)

    assert (root / "first").exists()
    assert os.listdir(tmp_path) == ["shared"]


def test_interrupted_build_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "compose_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_silhouettes(str(tmp_path / "half"), FEW)

    assert not os.listdir(tmp_path)


def test_dataset_of_another_spec_is_refused(dataset):
    with pytest.raises(FileExistsError, match="another spec .num_val is 7, expected 31"):
        build_silhouettes(str(dataset), SilhouettesSpec(FEW.num_train, 31))


def test_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="is no silhouettes dataset .spec.json is missing"):
        build_silhouettes(str(tmp_path), FEW)

    assert os.listdir(tmp_path) == ["notes.txt"]


class MakesAFolder:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_pickle_that_runs_code_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "animal_mnist" / "data" / "Animal_MNIST"
    folder.mkdir(parents=True)
    (tmp_path / "animal_mnist" / "__init__.py").touch()
    content = gzip.compress(pickle.dumps(MakesAFolder()))
    (folder / "animal_data_version_3.gz").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(pickle.UnpicklingError, match=r"refused \w+\.mkdir"):
        sources.load_outlines()

    assert os.listdir(tmp_path) == ["animal_mnist"]


def test_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(ModuleNotFoundError, match="'animal_mnist'.* pip install .*animal-mnist=="):
        sources.load_outlines()
