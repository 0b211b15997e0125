"""The silhouettes dataset: reproducible bytes, correct annotations, untrusted sources."""

import dataclasses
import gzip
import importlib.util
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from centripetalnet.data.datasets import silhouettes
from centripetalnet.data.datasets.silhouettes import __main__ as command_line
from centripetalnet.data.datasets.silhouettes import builder, painting, sources

SPEC = silhouettes.SilhouettesSpec(
    classes=("elephant", "giraffe"), num_train=20, num_val=15, image_width=(120, 136)
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("built") / "silhouettes"
    silhouettes.build_silhouettes(str(root), SPEC)
    return root


@pytest.fixture
def registered(dataset):
    silhouettes.register_silhouettes(str(dataset), SPEC)
    yield dataset
    silhouettes.register_silhouettes()


def annotation_file(root, split):
    with open(root / "annotations" / f"{split}.json", encoding="utf-8") as file:
        return json.load(file)


def all_bytes(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def test_two_builds_of_one_spec_are_equal_byte_for_byte(dataset, tmp_path):
    silhouettes.build_silhouettes(str(tmp_path / "again"), SPEC)

    first, second = all_bytes(dataset), all_bytes(tmp_path / "again")

    assert len(first) == SPEC.num_train + SPEC.num_val + 3
    assert first == second


def test_another_seed_gives_other_images(dataset, tmp_path):
    spec = dataclasses.replace(SPEC, seed=1, num_train=1, num_val=1)

    silhouettes.build_silhouettes(str(tmp_path / "other"), spec)

    first = Path("train", "000001.png")
    assert (tmp_path / "other" / first).read_bytes() != (dataset / first).read_bytes()


def test_train_and_val_share_no_outline():
    outlines = sources.load_outlines(SPEC)

    for train, val in zip(outlines["train"], outlines["val"]):
        assert len(train) > len(val) > 50
        assert not {o.source_index for o in train} & {o.source_index for o in val}


def test_mirrored_outline_counts_as_the_same_animal():
    rng = np.random.default_rng(0)
    shapes = [(rng.random((20, 15)) > 0.5).astype(np.float32) for _ in range(3)]
    outlines = [sources.Outline(i, shape) for i, shape in enumerate(shapes)]
    outlines.append(sources.Outline(3, np.ascontiguousarray(shapes[1][:, ::-1])))

    groups = sources._duplicate_groups(outlines, 0.95)

    assert groups == [[0], [1, 3], [2]]


def test_images_are_painted_from_the_outlines_of_their_split(dataset):
    outlines = sources.load_outlines(SPEC)

    for split in silhouettes.SPLITS:
        for annotation in annotation_file(dataset, split)["annotations"]:
            own = outlines[split][annotation["category_id"] - 1]
            assert annotation["outline"] in {outline.source_index for outline in own}


def test_regions_of_the_photographs_are_disjoint():
    photograph = np.arange(50 * 3).reshape(1, 50, 3)

    train = sources.split_photograph(photograph, "train", SPEC)
    val = sources.split_photograph(photograph, "val", SPEC)

    assert train.size and val.size and not np.intersect1d(train, val).size


@pytest.mark.parametrize("split", silhouettes.SPLITS)
def test_boxes_are_tight_around_disjoint_masks_inside_the_image(dataset, split):
    coco = annotation_file(dataset, split)
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    painted = {image_id: np.zeros(size, int) for image_id, size in sizes.items()}

    for annotation in coco["annotations"]:
        mask = mask_util.decode(annotation["segmentation"])
        assert mask.shape == sizes[annotation["image_id"]]
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0
        painted[annotation["image_id"]] += mask

    for image in coco["images"]:
        pixels = cv2.imread(str(dataset / split / image["file_name"]))
        assert pixels.shape == (*sizes[image["id"]], 3)
        assert painted[image["id"]].max() == 1


@pytest.mark.parametrize("split", silhouettes.SPLITS)
def test_every_class_is_present_and_every_image_has_objects(dataset, split):
    coco = annotation_file(dataset, split)

    assert [category["name"] for category in coco["categories"]] == list(SPEC.classes)
    assert {a["category_id"] for a in coco["annotations"]} == {
        category["id"] for category in coco["categories"]
    }
    assert {a["image_id"] for a in coco["annotations"]} == {i["id"] for i in coco["images"]}


def test_no_object_is_hidden_more_than_allowed():
    spec = dataclasses.replace(
        SPEC, objects_per_image=(6, 6), overlap_probability=1.0, num_train=1, num_val=1
    )
    rng = np.random.default_rng(0)
    first = np.zeros((130, 130), bool)
    first[20:60, 20:60] = True
    first[20:36, 20:60] = False  # 640 of 1,600 are hidden already

    for _ in range(50):
        patch = np.ones((30, 30), bool)
        window = painting._find_place(patch, [first], [1600], 0.5, first.shape, spec, rng)
        if window is not None:
            assert 640 + (first[window] & patch).sum() <= 800


def test_pycocotools_loads_the_annotations(dataset):
    coco = COCO(str(dataset / "annotations" / "val.json"))

    assert len(coco.getImgIds()) == SPEC.num_val
    assert coco.annToMask(next(iter(coco.anns.values()))).any()


def test_coco_evaluator_gives_100_to_the_ground_truth(registered):
    dataset_dicts = DatasetCatalog.get("silhouettes_val")
    evaluator = COCOEvaluator("silhouettes_val", tasks=("bbox", "segm"), distributed=False)
    evaluator.reset()

    for record in dataset_dicts:
        annotations = record["annotations"]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(
            [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in annotations]
        )
        instances.scores = np.ones(len(annotations))
        instances.pred_classes = np.array([a["category_id"] for a in annotations])
        instances.pred_masks = torch.stack(
            [torch.from_numpy(mask_util.decode(a["segmentation"])) for a in annotations]
        )
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()

    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"][f"AP-{SPEC.classes[0]}"] == pytest.approx(100)


def test_first_use_builds_the_dataset(tmp_path):
    spec = dataclasses.replace(SPEC, num_train=2, num_val=1)
    silhouettes.register_silhouettes(str(tmp_path / "lazy"), spec)
    try:
        assert not (tmp_path / "lazy").exists()

        assert len(DatasetCatalog.get("silhouettes_train")) == 2
        assert (tmp_path / "lazy" / "annotations" / "val.json").is_file()
    finally:
        silhouettes.register_silhouettes()


def test_registering_twice_keeps_one_dataset_of_the_last_root(tmp_path):
    try:
        silhouettes.register_silhouettes(str(tmp_path / "first"))
        silhouettes.register_silhouettes(str(tmp_path / "last"))

        metadata = MetadataCatalog.get("silhouettes_val")
        assert metadata.json_file == str(tmp_path / "last" / "annotations" / "val.json")
        assert metadata.evaluator_type == "coco"
        assert metadata.thing_classes == list(silhouettes.SilhouettesSpec().classes)
    finally:
        silhouettes.register_silhouettes()


def test_the_folder_is_that_of_the_environment_at_first_use(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    silhouettes.register_silhouettes(spec=dataclasses.replace(SPEC, num_train=2, num_val=1))
    try:
        monkeypatch.setenv("DETECTRON2_DATASETS", "chosen")
        files = [x["file_name"] for x in DatasetCatalog.get("silhouettes_train")]
        # Training and evaluation read the same files, even if the environment changes.
        monkeypatch.setenv("DETECTRON2_DATASETS", "later")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        files += [x["file_name"] for x in DatasetCatalog.get("silhouettes_val")]

        root = tmp_path / "chosen" / "silhouettes"
        for split in ("train", "val"):
            metadata = MetadataCatalog.get(f"silhouettes_{split}")
            assert metadata.json_file == str(root / "annotations" / f"{split}.json")
            assert metadata.image_root == str(root / split)
        assert sorted(map(Path, files)) == sorted(root.glob("*/*.png"))
        assert len(files) == 3
        assert sorted(os.listdir(tmp_path)) == ["chosen", "elsewhere"]
    finally:
        silhouettes.register_silhouettes()


def test_concurrent_builds_give_one_complete_dataset(tmp_path):
    spec = dataclasses.replace(SPEC, num_train=5, num_val=5)
    root = tmp_path / "shared"
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=silhouettes.build_silhouettes, args=(str(root), spec))
        for _ in range(2)
    ]

    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    assert os.listdir(tmp_path) == ["shared"]
    assert len(all_bytes(root)) == 13


def test_builder_that_comes_second_keeps_the_first_dataset(monkeypatch, tmp_path):
    spec = dataclasses.replace(SPEC, num_train=1, num_val=1)
    root = tmp_path / "shared"
    write = builder._write_dataset

    def write_while_another_finishes(staged, spec):
        monkeypatch.setattr(builder, "_write_dataset", write)
        silhouettes.build_silhouettes(str(root), spec)
        (root / "first").touch()
        write(staged, spec)

    monkeypatch.setattr(builder, "_write_dataset", write_while_another_finishes)
    silhouettes.build_silhouettes(str(root), spec)

    assert (root / "first").exists()
    assert os.listdir(tmp_path) == ["shared"]


def test_interrupted_build_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "compose_image", interrupt)

    with pytest.raises(KeyboardInterrupt):
        silhouettes.build_silhouettes(str(tmp_path / "half"), SPEC)

    assert not os.listdir(tmp_path)


def test_dataset_of_another_spec_is_refused(dataset):
    before = all_bytes(dataset)

    with pytest.raises(FileExistsError, match="num_val is 15, expected 31"):
        silhouettes.build_silhouettes(str(dataset), dataclasses.replace(SPEC, num_val=31))

    assert all_bytes(dataset) == before


def test_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="is no silhouettes dataset"):
        silhouettes.build_silhouettes(str(tmp_path), SPEC)

    assert os.listdir(tmp_path) == ["notes.txt"]


class RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_pickle_that_runs_a_command_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    with gzip.open(path, "wb") as file:
        pickle.dump(RunsACommand(f"touch {tmp_path / 'ran'}"), file)

    with pytest.raises(pickle.UnpicklingError, match=r"refused \w+\.system"):
        sources._read_pickled_array(str(path))

    assert not (tmp_path / "ran").exists()


def test_pickled_array_is_read_back(tmp_path):
    expected = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with gzip.open(tmp_path / "images.gz", "wb") as file:
        pickle.dump(expected, file, protocol=4)

    found = sources._read_pickled_array(str(tmp_path / "images.gz"))

    assert found.dtype == expected.dtype
    assert (found == expected).all()


def test_pickle_without_integers_is_refused(tmp_path):
    for number, content in enumerate(([1, 2], np.array([1, None]), np.zeros(3))):
        path = tmp_path / f"{number}.gz"
        with gzip.open(path, "wb") as file:
            pickle.dump(content, file, protocol=4)

        with pytest.raises(ValueError, match="one array of integers"):
            sources._read_pickled_array(str(path))


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("animal_mnist", "pip install --no-deps --ignore-requires-python animal-mnist==0.4"),
        ("sklearn", "pip install scikit-learn"),
    ],
)
def test_missing_package_is_named_with_its_command(monkeypatch, tmp_path, missing, command):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name)
    )

    with pytest.raises(ModuleNotFoundError, match=command) as error:
        silhouettes.build_silhouettes(str(tmp_path / "none"), SPEC)

    assert missing in str(error.value)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", ("horse", "unicorn")),
        ("classes", ()),
        ("object_side", (88, 28)),
        ("object_side", (28, 127)),
        ("num_val", 0),
        ("val_outline_fraction", 1.0),
    ],
)
def test_impossible_spec_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        silhouettes.SilhouettesSpec(**{field: value})


def test_command_line_builds_into_the_given_root(monkeypatch, tmp_path, capsys):
    built = []
    monkeypatch.setattr(command_line, "build_silhouettes", built.append)

    command_line.main(["--root", str(tmp_path)])

    assert built == [str(tmp_path)]
    assert str(tmp_path) in capsys.readouterr().out


def test_running_the_module_gives_no_warning():
    project = Path(silhouettes.__file__).parents[4]

    helped = subprocess.run(
        [sys.executable, "-m", silhouettes.__name__, "--help"],
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "--root" in helped.stdout
    assert "RuntimeWarning" not in helped.stderr
