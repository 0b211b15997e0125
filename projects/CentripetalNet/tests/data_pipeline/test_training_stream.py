import itertools
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils import comm
from PIL import Image

from centripetalnet.data import (
    CentripetalNetDatasetMapper,
    TrainingStream,
    build_training_loader,
    training_stream,
)

RECORDS = [{"file_name": f"image{i}.jpg", "number": i} for i in range(5)]


def draw(record):
    """A sample with a random number of each kind."""
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    return {"number": record["number"], "drawn": drawn}


def plain_sampler(seed):
    return TrainingSampler(len(RECORDS), seed=seed)


def stream_of(mapper=draw, seed=3, batch_size=2, build_sampler=plain_sampler, **options):
    return TrainingStream(
        RECORDS, build_sampler, mapper, seed=seed, batch_size=batch_size, **options
    )


def first(stream, count):
    return list(itertools.islice(iter(stream), count))


def test_samples_are_independent_of_earlier_draws_and_the_number_of_workers():
    expected = first(stream_of(), 24)

    np.random.seed(8)
    for workers in (0, 1, 2):
        loader = torch.utils.data.DataLoader(
            stream_of(), batch_size=2, num_workers=workers, collate_fn=list
        )
        batches = itertools.islice(iter(loader), 12)
        assert list(itertools.chain.from_iterable(batches)) == expected


def test_each_position_has_its_own_random_numbers():
    samples = first(stream_of(), 200)

    for kind in range(3):
        assert len({x["drawn"][kind] for x in samples}) == 200


def test_another_seed_gives_another_order_and_other_augmentations():
    one, other = first(stream_of(seed=1), 20), first(stream_of(seed=2), 20)

    assert [x["number"] for x in one] != [x["number"] for x in other]
    assert not {x["drawn"] for x in one} & {x["drawn"] for x in other}


@pytest.mark.parametrize("num_samples", [0, 1, 7, 24])
def test_a_stream_resumes_where_another_one_stopped(num_samples):
    expected = first(stream_of(), 30)[num_samples:]
    other = stream_of(seed=9)

    other.resume(3, num_samples)

    assert first(other, len(expected)) == expected


@pytest.mark.parametrize(
    "build_sampler",
    [plain_sampler, lambda seed: RepeatFactorTrainingSampler(torch.full((5,), 1.5), seed=seed)],
    ids=["plain", "repeat factors"],
)
def test_processes_together_see_the_samples_of_one_process(build_sampler, monkeypatch):
    expected = first(stream_of(build_sampler=build_sampler), 24)

    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        stream = stream_of(build_sampler=build_sampler)
        stream.resume(3, 6)
        shares.append(first(stream, 6))

    assert list(itertools.chain.from_iterable(zip(*shares))) == expected[6:]


@pytest.mark.parametrize("has_parent, status", [(True, 0), (False, 1)])
def test_a_worker_whose_parent_died_during_its_start_ends(has_parent, status, monkeypatch):
    worker = SimpleNamespace(id=0, num_workers=1)
    monkeypatch.setattr(training_stream, "get_worker_info", lambda: worker)
    stream = stream_of()

    child = os.fork()
    if child == 0:
        try:
            if not has_parent:
                os.getppid = lambda: 1
            iterator = iter(stream)
            os._exit(0 if has_parent and "number" in next(iterator) else 2)
        finally:
            os._exit(3)

    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == status


def unless_bad(record):
    if record["number"] in (1, 3):
        raise OSError(f"cannot read {record['file_name']}")
    return None if record["number"] == 2 else draw(record)


def test_with_skip_unusable_images_are_replaced_and_reported():
    samples = first(stream_of(unless_bad, skip_unusable=True), 50)

    assert {x["number"] for x in samples} == {0, 4}
    reported = {problem for x in samples for problem in x.get("left_out", ())}
    assert reported == {
        "cannot read image1.jpg",
        "the mapper returned None for image2.jpg",
        "cannot read image3.jpg",
    }
    assert any("left_out" not in x for x in samples)
    assert samples == first(stream_of(unless_bad, skip_unusable=True), 50)


def test_without_skip_unusable_an_unusable_image_is_an_error():
    with pytest.raises(OSError, match=r"cannot read image[13]\.jpg"):
        first(stream_of(unless_bad), 50)


def test_a_dataset_of_unusable_images_is_an_error():
    def never(record):
        raise ValueError(f"{record['file_name']} has no masks")

    with pytest.raises(ValueError, match="20 images in a row .* has no masks"):
        first(stream_of(never, skip_unusable=True), 1)


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_the_loader_has_the_configs_sampler_seed_and_batch(sampler, datasets):
    cfg = config(
        "quick_schedules/centripetal_tiny",
        DATALOADER__SAMPLER_TRAIN=sampler,
        SOLVER__IMS_PER_BATCH=4,
        SEED=5,
    )

    np.random.seed(0)
    loader = build_training_loader(cfg, draw_name)
    np.random.seed(1)
    again = build_training_loader(cfg, draw_name)

    assert loader.dataset.seed == 5
    assert type(loader.dataset.sampler).__name__ == sampler
    batches, others = (list(itertools.islice(iter(x), 6)) for x in (loader, again))
    assert batches == others and all(len(x) == 4 for x in batches)


def draw_name(record):
    return {"file_name": record["file_name"], "drawn": np.random.rand()}


def test_a_negative_seed_is_drawn(datasets):
    loaders = [
        build_training_loader(config("quick_schedules/centripetal_tiny", SEED=-1), draw_name)
        for _ in range(2)
    ]

    seeds = {x.dataset.seed for x in loaders}
    assert len(seeds) == 2 and min(seeds) >= 0


@pytest.mark.parametrize(
    "key, value", [("DATALOADER__ASPECT_RATIO_GROUPING", True), ("SOLVER__IMS_PER_BATCH", 0)]
)
def test_an_invalid_loader_config_is_named(key, value):
    with pytest.raises(ValueError, match=key.replace("__", ".")):
        build_training_loader(config(**{key: value}), draw)


@pytest.fixture
def train_on(tmp_path):
    """A config that trains on given records, each of the image 1.png."""
    Image.new("RGB", (10, 8)).save(tmp_path / "1.png")

    def make(*records, **options):
        records = [{"file_name": str(tmp_path / "1.png"), **x} for x in records]
        DatasetCatalog.register("made", lambda: records)
        MetadataCatalog.get("made").thing_classes = ["cow"]
        return config(
            "quick_schedules/centripetal_tiny", DATASETS__TRAIN=("made",), SEED=5, **options
        )

    yield make
    DatasetCatalog.remove("made")
    MetadataCatalog.remove("made")


OBJECT = {"bbox": [2, 1, 6, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}


def test_records_without_id_and_size_are_loaded(train_on):
    cfg = train_on({"annotations": [OBJECT]}, {"annotations": []}, SOLVER__IMS_PER_BATCH=1)

    loader = build_training_loader(cfg, CentripetalNetDatasetMapper(cfg, is_train=True))

    assert len(loader.dataset.records) == 1
    assert "instances" in next(iter(loader))[0]


@pytest.mark.parametrize("filter_empty", [True, False])
@pytest.mark.parametrize(
    "record", [{}, {"annotations": []}, {"annotations": [{**OBJECT, "iscrowd": 1}]}]
)
def test_a_training_without_objects_is_refused(train_on, record, filter_empty):
    cfg = train_on(record, record, DATALOADER__FILTER_EMPTY_ANNOTATIONS=filter_empty)

    with pytest.raises(ValueError, match=r"DATASETS.TRAIN is \('made',\), but no image has an obj"):
        build_training_loader(cfg, draw_name)
