"""Training decodes JPEGs at the size it needs."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from mapping import mapper, square_mask
from PIL import Image


@pytest.fixture
def photograph(tmp_path):
    """Writes a textured image and returns its record: two objects with masks."""

    def make(extension="jpg", size=(601, 803), mode="RGB", orientation=1, kind="polygon"):
        path = tmp_path / f"photograph.{extension}"
        noise = np.random.default_rng(0).integers(0, 256, (8, 11, 3), dtype=np.uint8)
        pixels = np.array(Image.fromarray(noise).resize(size[::-1], Image.BICUBIC))
        pixels[100:250, 300:500] = 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).convert(mode).save(path, quality=90, exif=exif)
        height, width = read_image(str(path), "RGB").shape[:2]
        boxes = [(37, 51, 402, 333), (500, 211, width, height)]
        return {
            "file_name": str(path),
            "height": height,
            "width": width,
            "annotations": [
                {
                    "bbox": list(box),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "segmentation": square_mask(kind, *box, size=(height, width)),
                }
                for box in boxes
            ],
        }

    return make


def decoded_in_full(data):
    """The record with a lossless copy of the image."""
    path = data["file_name"] + ".png"
    Image.fromarray(read_image(data["file_name"], "RGB")).save(path)
    return {**data, "file_name": path}


@pytest.mark.parametrize(
    "options, sizes",
    [
        ({}, (60,)),
        # At least the largest size is decoded.
        ({}, (60, 240)),
        ({"kind": "bitmask"}, (60,)),
        ({"mode": "L"}, (60,)),
        ({"mode": "CMYK"}, (60,)),
        ({"orientation": 3}, (60,)),
        ({"orientation": 6, "kind": "bitmask"}, (60,)),
    ],
)
def test_training_decodes_a_large_jpeg_at_a_reduced_size(photograph, options, sizes):
    data = photograph(**options)
    resize = T.ResizeShortestEdge(sizes, 1000, "choice")
    resizing = mapper(resize, masks=options.get("kind", "polygon"))
    records = data, decoded_in_full(data)

    for seed in range(len(sizes) * 2):
        samples = []
        for record in records:
            np.random.seed(seed)
            samples.append(resizing(record))

        reduced, full = (x["image"].float() for x in samples)
        assert reduced.shape == full.shape and 0 < (reduced - full).abs().mean() < 1.5
        boxes, expected = (x["instances"].gt_boxes.tensor for x in samples)
        assert len(boxes) == 2 and (boxes - expected).abs().max() <= 1
        masks, expected = (x["instances"].gt_masks.get_bounding_boxes().tensor for x in samples)
        assert (masks - expected).abs().max() <= 1


@pytest.mark.parametrize(
    "is_train, extension, sizes",
    [
        (True, "jpg", None),
        (True, "jpg", (0, 60)),
        (True, "jpg", (301,)),
        (True, "png", (60,)),
        (False, "jpg", (60,)),
    ],
)
def test_other_images_are_decoded_in_full(photograph, is_train, extension, sizes):
    data = photograph(extension)
    resize = [T.ResizeShortestEdge(sizes, 1000, "choice")] if sizes else []

    for seed in range(4):
        np.random.seed(seed)
        sample = mapper(*resize, is_train=is_train, masks="polygon")(data)

        np.random.seed(seed)
        expected = T.AugInput(read_image(data["file_name"], "RGB"))
        transforms = T.AugmentationList(resize)(expected)
        assert np.array_equal(sample["image"].permute(1, 2, 0), expected.image)
        if is_train:
            box = transforms.apply_box(np.array([data["annotations"][0]["bbox"]], dtype=float))
            assert np.array_equal(sample["instances"].gt_boxes.tensor[:1], np.float32(box))


# At 1/8 the second is square.
@pytest.mark.parametrize("size", [(601, 803), (607, 605)])
def test_the_record_has_the_size_of_the_file_not_of_the_reduced_image(photograph, size):
    data = photograph(size=size, orientation=6)
    resizing = mapper(T.ResizeShortestEdge((60,), 1000, "choice"))

    resizing(data)
    with pytest.raises(ValueError, match=rf"jpg, got \({size[0]}, {size[1]}\), expect"):
        resizing({**data, "width": size[1], "height": size[0]})


def test_a_truncated_jpeg_is_the_same_error_at_a_reduced_size(photograph):
    data = photograph()
    with open(data["file_name"], "rb") as file:
        content = file.read()
    with open(data["file_name"], "wb") as file:
        file.write(content[: len(content) // 2])

    messages = []
    for augmentations in ([], [T.ResizeShortestEdge((60,), 1000, "choice")]):
        with pytest.raises(OSError, match="cannot read the image .*jpg: .*truncated") as caught:
            mapper(*augmentations)(data)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
