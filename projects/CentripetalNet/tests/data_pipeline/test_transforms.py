import colorsys

import numpy as np
import pytest

from centripetalnet.data.transforms import (
    ColorDistortion,
    CropPadTransform,
    RandomCenterCropPad,
    distort_colors,
)

LEVELS = np.arange(256, dtype=np.uint8)
NO_CHANGE = {
    "image_format": "RGB",
    "before": LEVELS,
    "hue_shift": 0.0,
    "saturation_gain": 1.0,
    "after": LEVELS,
    "channel_order": (0, 1, 2),
}


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def random_image(height=40, width=60):
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def crop(size=(32, 32), ratios=(1.0,), border=16, **kwargs):
    return RandomCenterCropPad(size, ratios, border, fill=(10.2, 20.6, 30.0), **kwargs)


def test_no_distortion_changes_nothing():
    image = random_image()

    assert np.array_equal(distort_colors(image, **NO_CHANGE), image)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_hue_and_saturation_are_those_of_hsv(image_format):
    rgb = (200, 80, 40)
    image = np.array(rgb if image_format == "RGB" else rgb[::-1], np.uint8)[None, None]

    changed = distort_colors(
        image,
        **{
            **NO_CHANGE,
            "image_format": image_format,
            "hue_shift": 18.0,
            "saturation_gain": 0.5,
        },
    )[0, 0]

    hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in rgb))
    expected = colorsys.hsv_to_rgb(hue + 18 / 360, saturation * 0.5, value)
    found = changed if image_format == "RGB" else changed[::-1]
    assert np.abs(np.array(expected) * 255 - found).max() <= 3


def test_distortion_stays_in_range_and_does_not_change_the_input():
    image = random_image()
    copy = image.copy()

    results = [ColorDistortion().get_transform(image).apply_image(image) for _ in range(50)]

    assert np.array_equal(image, copy)
    assert all(x.dtype == np.uint8 and x.shape == image.shape for x in results)
    assert len({x.tobytes() for x in results}) > 40


def test_brightness_and_contrast_follow_their_ranges():
    image = np.full((1, 1, 3), 100, np.uint8)
    options = {"saturation": (1, 1), "hue": 0.0, "swap_channels": False}

    levels = [
        int(ColorDistortion(**options).get_transform(image).apply_image(image)[0, 0, 0])
        for _ in range(400)
    ]

    # Brightness adds up to 32, contrast multiplies by 0.5 to 1.5.
    assert 30 <= min(levels) < 60 and 160 < max(levels) <= 198
    assert 60 < levels.count(100) < 140


def test_an_unknown_channel_order_is_named():
    with pytest.raises(ValueError, match="YUV"):
        ColorDistortion(image_format="YUV")


@pytest.mark.parametrize("x0, y0", [(-5, -7), (10, 3), (50, 30), (-100, -100)])
def test_crop_pad_keeps_pixels_at_their_coordinates(x0, y0):
    image = random_image(20, 30)
    transform = CropPadTransform(x0, y0, 25, 15, (20, 30), fill=(1, 2, 3))

    window = transform.apply_image(image)

    assert window.shape == (15, 25, 3)
    moved = transform.apply_coords(np.array([[3.0, 4.0]]))[0]
    assert moved.tolist() == [3 - x0, 4 - y0]
    for y in range(15):
        for x in range(25):
            inside = 0 <= y + y0 < 20 and 0 <= x + x0 < 30
            expected = image[y + y0, x + x0] if inside else (1, 2, 3)
            assert np.array_equal(window[y, x], expected)


def test_crop_pad_is_inverted():
    image = random_image(20, 30)
    transform = CropPadTransform(-5, -7, 50, 40, (20, 30), fill=0)

    assert np.array_equal(transform.inverse().apply_image(transform.apply_image(image)), image)
    points = np.array([[3.0, 4.0]])
    assert np.array_equal(transform.inverse().apply_coords(transform.apply_coords(points)), points)


def test_crop_pad_fills_masks_with_background():
    transform = CropPadTransform(-1, -1, 4, 4, (2, 2), fill=(9, 9, 9))

    mask = transform.apply_segmentation(np.ones((2, 2), np.uint8))

    assert mask.sum() == 4 and mask[1:3, 1:3].all()


def test_window_has_one_of_the_ratios_and_the_mean_colour_around():
    image = random_image(10, 10)
    augmentation = crop(size=(100, 50), ratios=(0.6, 1.3), border=0)

    windows = [augmentation.get_transform(image, None).apply_image(image) for _ in range(30)]

    assert {window.shape for window in windows} == {(60, 30, 3), (130, 65, 3)}
    assert all(window[0, 0].tolist() == [10, 21, 30] for window in windows)


@pytest.mark.parametrize("size, expected", [(300, 128), (256, 64), (100, 32), (2, 0), (1, 0)])
def test_border_is_halved_until_twice_of_it_fits(size, expected):
    augmentation, image = crop(size=(1, 1), border=128), random_image(1, size)

    centers = [augmentation.get_transform(image, None).x0 for _ in range(300)]

    assert min(centers) >= expected and max(centers) < max(size - expected, 1)


def test_a_window_with_an_object_is_preferred():
    image = random_image(60, 60)
    boxes = np.array([[10.0, 10, 20, 20]])

    hits = 0
    for _ in range(50):
        transform = crop().get_transform(image, boxes)
        x, y = transform.apply_coords(np.array([[15.0, 15.0]]))[0]
        hits += 0 < x < 32 and 0 < y < 32

    assert hits == 50
