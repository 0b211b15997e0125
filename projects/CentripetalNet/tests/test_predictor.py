"""load_predictor and the detections of the predictor."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from PIL import Image

import centripetalnet
from centripetalnet import load_predictor
from centripetalnet.modeling import CentripetalNetWithTTA

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture
def load(untrained):
    def load(**options):
        return load_predictor(untrained / "config.yaml", untrained / "model.pth", **options)

    return load


@pytest.mark.parametrize("tta", [False, True])
def test_detections_are_instances_on_the_cpu_the_best_first(load, tta):
    instances = load(device="cpu", tta=tta).detect(PICTURE)

    assert len(instances) > 10 and instances.image_size == (50, 70)
    assert instances.scores.device.type == "cpu"
    assert (instances.scores.diff() <= 0).all()
    assert instances.pred_masks.shape == (len(instances), 50, 70)


@pytest.mark.parametrize("size, resized", [((200, 280), (50, 70)), ((25, 35), (50, 70))])
@pytest.mark.parametrize("tta", [False, True])
def test_boxes_of_a_resized_image_are_in_pixels_of_the_original(load, size, resized, tta):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(picture).resize(resized[::-1], Image.BILINEAR))
    opts = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 70, "TEST.AUG.SCALES", [1.0, 1.5]]

    found = load(opts=opts, tta=tta).detect(picture)

    expected = load(opts=["TEST.AUG.SCALES", [1.0, 1.5]], tta=tta).detect(small)
    expected.pred_boxes.scale(size[1] / resized[1], size[0] / resized[0])
    assert found.image_size == size and len(found) > 10
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


def test_a_mask_of_a_resized_image_fills_its_box(load):
    predictor = load(opts=["INPUT.MIN_SIZE_TEST", 64])
    # All pixels of a box are foreground.
    predictor.model.mask_head.layers.predictor.bias.data[:] = 100

    found = predictor.detect(cv2.resize(PICTURE, (280, 200)))

    assert found.pred_masks.shape == (len(found), 200, 280) and len(found) > 10
    seen = BitMasks(found.pred_masks).get_bounding_boxes().tensor
    assert (seen - found.pred_boxes.tensor).abs().max() <= 1


# Of the second sizes, the first and the last have one canvas size.
@pytest.mark.parametrize("sizes", [[(50, 70)] * 3, [(50, 70), (90, 60), (60, 100)]])
@pytest.mark.parametrize("tta", [False, True])
def test_a_list_gives_the_results_of_its_images(load, tmp_path, sizes, tta):
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (*x, 3), dtype=np.uint8) for x in sizes]
    cv2.imwrite(str(tmp_path / "picture.png"), pictures[1])
    predictor = load(tta=tta, opts=["MODEL.CENTRIPETALNET.TEST_CANVAS_BITS", 63])

    results = predictor(pictures)
    found = predictor.detect([pictures[0], tmp_path / "picture.png", pictures[2]], min_score=0.5)

    assert len(results) == len(found) == 3
    for picture, result, instances in zip(pictures, results, found):
        for seen, min_score in ((result["instances"], 0.0), (instances, 0.5)):
            expected = predictor.detect(picture, min_score)
            assert seen.image_size == picture.shape[:2] and len(seen) == len(expected) > 10
            torch.testing.assert_close(seen.scores, expected.scores)
            torch.testing.assert_close(seen.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(seen.pred_classes, expected.pred_classes)
            assert (seen.pred_masks != expected.pred_masks).float().mean() < 1e-3


def test_an_empty_list_gives_an_empty_list(load):
    predictor = load()

    assert predictor([]) == predictor.detect([]) == []


def test_a_bad_element_of_a_list_is_named(load, tmp_path):
    predictor = load()
    (tmp_path / "bad.png").write_text("no picture")

    for call in (predictor, predictor.detect):
        with pytest.raises(ValueError, match="index 1 of the list: the image is of type NoneType"):
            call([PICTURE, None])
    with pytest.raises(OSError, match="bad.png cannot be read as an image"):
        predictor.detect([PICTURE, tmp_path / "bad.png"])


def test_lower_scores_are_dropped(load):
    predictor = load()
    every, best = predictor.detect(PICTURE), predictor.detect(PICTURE, min_score=0.9)

    assert 0 < len(best) < len(every)
    assert torch.equal(best.scores, every.scores[every.scores >= 0.9])


def test_test_time_augmentation_is_off_by_default(load):
    assert isinstance(load(tta=True).model, CentripetalNetWithTTA)
    assert not isinstance(load().model, CentripetalNetWithTTA)


def test_opts_override_the_other_arguments(load, untrained):
    opts = ["TEST.AUG.ENABLED", True, "MODEL.WEIGHTS", str(untrained / "model.pth")]

    predictor = load_predictor(untrained / "config.yaml", "nothing.pth", opts=opts)

    assert isinstance(predictor.model, CentripetalNetWithTTA)


def test_the_default_weights_are_those_of_the_config(untrained):
    opts = ["MODEL.WEIGHTS", str(untrained / "model.pth")]

    assert len(load_predictor(untrained / "config.yaml", None, opts=opts).detect(PICTURE)) > 10
    with pytest.raises(ValueError, match="set MODEL.WEIGHTS"):
        load_predictor(untrained / "config.yaml", None)


@pytest.mark.parametrize(
    "picture, message",
    [
        (None, "of type NoneType, .*cv2.imread returns None"),
        (PICTURE[:, :, 0], r"is \(50, 70\) of uint8, expected an array \(height, width, 3\)"),
        (PICTURE.transpose(2, 0, 1), r"is \(3, 50, 70\) of uint8"),
        (PICTURE / 255, "of float64, expected .* uint8"),
        (PICTURE[:0], r"is \(0, 70, 3\)"),
    ],
)
def test_an_array_of_another_shape_or_type_is_an_error(load, picture, message):
    predictor = load()

    for call in (predictor, predictor.detect):
        with pytest.raises(ValueError, match=message):
            call(picture)


def test_the_package_imports_the_predictor_on_first_use():
    code = """
import sys, centripetalnet
assert "centripetalnet.predictor" not in sys.modules
assert "load_predictor" in centripetalnet.__all__
centripetalnet.load_predictor
assert "centripetalnet.predictor" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_has_no_other_attributes():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = centripetalnet.no_such_thing
