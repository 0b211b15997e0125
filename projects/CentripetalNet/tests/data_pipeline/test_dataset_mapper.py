import re

import numpy as np
import pytest
import torch
from conftest import config
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from mapping import mapper, square_mask
from PIL import Image

from centripetalnet.data import CentripetalNetDatasetMapper, build_augmentations
from centripetalnet.data.transforms import CropPadTransform


class FixedWindow(T.Augmentation):
    def __init__(self, *window):
        super().__init__()
        self.window = window

    def get_transform(self, image):
        return CropPadTransform(*self.window, image.shape[:2], fill=0)


@pytest.fixture
def record(tmp_path):
    """Writes an image and returns its record in Detectron2's format."""

    def make(boxes=(), size=(60, 80), mode="RGB", **annotation):
        path = tmp_path / "image.png"
        height, width = size
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        Image.fromarray(np.full(shape, 100, np.uint8)).save(path)
        return {
            "file_name": str(path),
            "height": height,
            "width": width,
            "image_id": 7,
            "annotations": [
                {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, **annotation}
                for i, box in enumerate(boxes)
            ],
        }

    return make


def test_boxes_are_clipped_and_dropped_if_their_centre_is_cut_off(record):
    # Inside; cut with the centre inside; cut with the centre outside.
    boxes = [(20, 20, 30, 30), (35, 25, 55, 35), (38, 20, 70, 30)]

    result = mapper(FixedWindow(10, 10, 40, 40))(record(boxes))

    assert result["instances"].gt_boxes.tensor.tolist() == [[10, 10, 20, 20], [25, 15, 40, 25]]
    assert result["instances"].gt_classes.tolist() == [0, 1]


def test_boxes_in_coco_format_follow_resize_and_flip(record):
    data = record([(20, 20, 10, 10)], bbox_mode=BoxMode.XYWH_ABS)

    result = mapper(T.Resize((120, 160)), T.RandomFlip(prob=1.0))(data)

    assert result["instances"].gt_boxes.tensor.tolist() == [[100, 40, 120, 60]]


def masks_of(instances):
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_masks_follow_crop_pad_resize_and_flip(record, kind):
    data = record([(20, 20, 30, 30), (0, 0, 80, 60), (70, 20, 75, 30)])
    for annotation in data["annotations"]:
        box = annotation["bbox"]
        annotation["segmentation"] = square_mask(kind, *box)
    # The window exceeds the image at the top and does not contain the third object.
    augmentations = [FixedWindow(10, -10, 40, 50), T.Resize((100, 80)), T.RandomFlip(prob=1.0)]

    instances = mapper(*augmentations, masks=kind)(data)["instances"]

    # Two objects have their centre in the window; each mask fills its box.
    assert isinstance(instances.gt_masks, PolygonMasks if kind == "polygon" else BitMasks)
    assert instances.gt_classes.tolist() == [0, 1]
    masks = masks_of(instances)
    for mask, (x0, y0, x1, y1) in zip(masks, instances.gt_boxes.tensor.int()):
        assert mask[y0:y1, x0:x1].all() and mask.sum() == (y1 - y0) * (x1 - x0)


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_crowds_and_images_without_objects_give_no_masks(record, kind):
    crowd = record([(10, 10, 50, 50)], iscrowd=1, segmentation=square_mask("rle", 10, 10, 50, 50))

    for data in (crowd, record()):
        instances = mapper(masks=kind)(data)["instances"]
        assert len(instances) == len(instances.gt_masks) == 0


def test_polygons_can_become_bitmasks(record):
    data = record([(20, 20, 30, 30)], segmentation=square_mask("polygon", 20, 20, 30, 30))

    masks = mapper(masks="bitmask")(data)["instances"].gt_masks

    assert masks.tensor[0, 20:30, 20:30].all() and masks.tensor.sum() == 100


def test_an_object_without_mask_is_an_error_that_names_its_image(record):
    with pytest.raises(ValueError, match="MODEL.MASK_ON .*image.png has no segmentation"):
        mapper(masks="polygon")(record([(20, 20, 30, 30)]))


def test_run_length_encoded_masks_need_the_bitmask_format(record):
    data = record([(20, 20, 30, 30)], segmentation=square_mask("rle", 20, 20, 30, 30))

    with pytest.raises(ValueError, match="image.png .*INPUT.MASK_FORMAT.*need 'bitmask'"):
        mapper(masks="polygon")(data)


def test_crowd_and_empty_boxes_are_no_targets(record):
    empty = record([(20, 20, 20, 30), (20, 20, 30, 20), (10, 10, 50, 50)])
    crowd = record([(10, 10, 50, 50)], iscrowd=1)

    assert mapper()(empty)["instances"].gt_classes.tolist() == [2]
    assert len(mapper()(crowd)["instances"]) == 0


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (700, 600)])
@pytest.mark.parametrize("boxes", [[], [(0, 0, 1, 1)]])
def test_the_released_recipe_accepts_images_of_any_size(record, size, boxes):
    cfg = config()
    released = CentripetalNetDatasetMapper(cfg, is_train=True)

    for _ in range(5):
        result = released(record(boxes, size=size))

        assert result["image"].shape == (3, 511, 511) and result["image"].dtype == torch.uint8
        assert result["instances"].image_size == (511, 511)


def test_a_grey_image_becomes_rgb(record):
    assert mapper()(record(mode="L"))["image"].shape == (3, 60, 80)


def test_the_record_is_not_changed(record):
    polygon = np.array([10.0, 10, 50, 10, 50, 50])
    data = record([(10, 10, 50, 50)], segmentation=[polygon])
    keys = set(data)

    mapper(T.Resize((120, 160)), masks="polygon")(data)

    assert set(data) == keys and len(data["annotations"]) == 1
    assert polygon.tolist() == [10, 10, 50, 10, 50, 50]


def test_at_test_time_the_image_keeps_its_size_and_has_no_targets(record):
    cfg = config()

    result = CentripetalNetDatasetMapper(cfg, is_train=False)(record([(10, 10, 50, 50)]))

    assert build_augmentations(cfg, is_train=False) == []
    assert result["image"].shape == (3, 60, 80) and result["image_id"] == 7
    assert "instances" not in result and "annotations" not in result


@pytest.mark.parametrize(
    "short_edge, longest, expected",
    [(30, 1333, (30, 40)), (30, 20, (15, 20)), (90, 1333, (90, 120)), (0, 20, (60, 80))],
)
def test_at_test_time_the_image_is_resized_as_the_config_says(
    record, short_edge, longest, expected
):
    cfg = config(INPUT__MIN_SIZE_TEST=short_edge, INPUT__MAX_SIZE_TEST=longest)

    result = CentripetalNetDatasetMapper(cfg, is_train=False)(record(size=(60, 80)))

    assert result["image"].shape == (3, *expected)
    assert (result["height"], result["width"]) == (60, 80)


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_training_resizes_an_image_before_it_crops(record, kind):
    cfg = config(
        INPUT__MIN_SIZE_TRAIN=(60,),
        INPUT__CENTER_CROP_PAD__SIZE=[120, 120],
        INPUT__CENTER_CROP_PAD__RATIOS=[1.0],
        INPUT__COLOR_DISTORTION__ENABLED=False,
        INPUT__MASK_FORMAT=kind,
        MODEL__MASK_ON=True,
    )
    box = (200, 100, 400, 300)
    data = record([box], size=(600, 800), segmentation=square_mask(kind, *box, size=(600, 800)))
    image = np.zeros((600, 800, 3), np.uint8)
    image[100:300, 200:400] = 255
    Image.fromarray(image).save(data["file_name"])
    resizing = CentripetalNetDatasetMapper(cfg, is_train=True)

    for seed in range(5):
        np.random.seed(seed)
        result = resizing(data)

        # The crop contains the object's centre and possibly cuts it.
        (x0, y0, x1, y1) = result["instances"].gt_boxes.tensor[0].int().tolist()
        assert max(x1 - x0, y1 - y0) <= 20 and min(x1 - x0, y1 - y0) >= 10
        white = result["image"].float().mean(dim=0) > 200
        assert white[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all()
        mask = masks_of(result["instances"])[0]
        assert mask[y0:y1, x0:x1].all() and mask.sum() == (y1 - y0) * (x1 - x0)


@pytest.mark.parametrize(
    "sizes, sampling, expected",
    [((30, 45), "choice", {30, 45}), ((0, 30), "choice", {30, 60}), ((7, 9), "range", {7, 8, 9})],
)
def test_training_sizes_are_drawn_as_the_sampling_says(sizes, sampling, expected):
    cfg = config(INPUT__MIN_SIZE_TRAIN=sizes, INPUT__MIN_SIZE_TRAIN_SAMPLING=sampling)
    image = np.zeros((60, 80, 3), np.uint8)

    resize = build_augmentations(cfg, is_train=True)[0]

    seen = {resize.get_transform(image).apply_image(image).shape[0] for _ in range(60)}
    assert seen == expected


def test_the_released_recipe_draws_the_recorded_random_numbers(record):
    data = record([(100, 100, 300, 200), (400, 300, 700, 500)], size=(600, 800))
    released = CentripetalNetDatasetMapper(config(), is_train=True)

    np.random.seed(0)
    samples = [released(data) for _ in range(3)]

    boxes = [x["instances"].gt_boxes.tensor.tolist() for x in samples]
    assert boxes == [
        [[0.0, 18.369281768798828, 462.5718994140625, 352.356201171875]],
        [[20.039215087890625, 0.0, 511.0, 312.27777099609375]],
        [
            [345.6764831542969, 31.3112735748291, 511.0, 156.55636596679688],
            [0.0, 281.8014831542969, 220.43136596679688, 511.0],
        ],
    ]
    assert [int(x["image"][0, 255, 255]) for x in samples] == [122, 102, 115]


@pytest.mark.parametrize(
    "key, value",
    [
        ("MIN_SIZE_TEST", -1),
        ("MAX_SIZE_TEST", 0),
        ("MIN_SIZE_TRAIN", ()),
        ("MIN_SIZE_TRAIN", (640, -1)),
        ("MIN_SIZE_TRAIN", (0.5,)),
        ("MAX_SIZE_TRAIN", -5),
        ("MIN_SIZE_TRAIN_SAMPLING", "uniform"),
    ],
)
@pytest.mark.parametrize("is_train", [False, True])
def test_an_invalid_size_is_named(key, value, is_train):
    # A training also checks the sizes of the evaluation.
    with pytest.raises(ValueError, match=rf"INPUT\.{key} .*{re.escape(str(value))}"):
        build_augmentations(config(**{f"INPUT__{key}": value}), is_train)


@pytest.mark.parametrize("sizes", [(640,), (640, 480), (0, 640), (480, 560, 640)])
def test_a_range_of_training_sizes_has_a_positive_low_and_high_end(sizes):
    cfg = config(INPUT__MIN_SIZE_TRAIN=sizes, INPUT__MIN_SIZE_TRAIN_SAMPLING="range")

    with pytest.raises(ValueError, match=r"INPUT\.MIN_SIZE_TRAIN .*lowest.*highest"):
        build_augmentations(cfg, is_train=True)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_an_image_that_cannot_be_read_is_named(record, content):
    data = record()
    with open(data["file_name"], "wb") as file:
        file.write(content)

    with pytest.raises(OSError, match="cannot read the image .*image.png"):
        mapper()(data)


def test_an_image_with_too_many_pixels_is_named(record, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(OSError, match="cannot read the image .*image.png: .*decompression bomb"):
        mapper()(record(size=(60, 80)))


def test_a_truncated_image_is_named(record):
    data = record(size=(300, 300))
    with open(data["file_name"], "rb") as file:
        content = file.read()
    with open(data["file_name"], "wb") as file:
        file.write(content[: len(content) // 2])

    with pytest.raises(OSError, match="cannot read the image .*image.png"):
        mapper()(data)


def test_a_size_that_differs_from_the_annotation_is_an_error(record):
    data = {**record(), "width": 79}

    with pytest.raises(ValueError, match="Mismatched image shape.*image.png"):
        mapper()(data)


def test_an_unknown_flip_is_named():
    with pytest.raises(ValueError, match="vertical"):
        build_augmentations(config(INPUT__RANDOM_FLIP="vertical"), is_train=True)


def test_a_nan_box_is_named(record):
    with pytest.raises(ValueError, match="image.png has the boxes .*nan"):
        mapper()(record([(0, 0, float("nan"), 10)]))
