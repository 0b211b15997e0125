"""Augmentations of the released recipe: colour distortion, and random centre crop and pad.

Images are (H, W, 3) uint8; positions are pixels, x to the right and y downwards.
"""

from collections.abc import Sequence
from functools import partial
from typing import Optional

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, ColorTransform
from fvcore.transforms.transform import Transform

_LEVELS = np.arange(256, dtype=np.float32)
_TO_HSV = {"RGB": cv2.COLOR_RGB2HSV_FULL, "BGR": cv2.COLOR_BGR2HSV_FULL}
_FROM_HSV = {"RGB": cv2.COLOR_HSV2RGB_FULL, "BGR": cv2.COLOR_HSV2BGR_FULL}
# cv2's "full" HSV spreads the circle over a byte.
_HUE_LEVELS_PER_DEGREE = 256 / 360


def _table(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255).round().astype(np.uint8)


def distort_colors(
    image: np.ndarray,
    image_format: str,
    before: np.ndarray,
    hue_shift: float,
    saturation_gain: float,
    after: np.ndarray,
    channel_order: Sequence[int],
) -> np.ndarray:
    """Applies one colour distortion by lookup tables of bytes.

    Args:
        image: (H, W, 3) uint8.
        image_format: "RGB" or "BGR".
        before: (256,) uint8, lookup table before the HSV steps.
        hue_shift: degrees.
        saturation_gain: factor.
        after: (256,) uint8, lookup table after the HSV steps.
        channel_order: source channel of each channel of the result.

    Returns:
        (H, W, 3) uint8.
    """
    image = cv2.LUT(image, before)
    if hue_shift or saturation_gain != 1:
        hue = (_LEVELS + round(hue_shift * _HUE_LEVELS_PER_DEGREE)).astype(np.int64) % 256
        tables = np.stack(
            (hue.astype(np.uint8), _table(_LEVELS * saturation_gain), _table(_LEVELS)), axis=-1
        )
        hsv = cv2.cvtColor(image, _TO_HSV[image_format])
        image = cv2.cvtColor(cv2.LUT(hsv, tables[None]), _FROM_HSV[image_format])
    image = cv2.LUT(image, after)
    # Several times as fast as indexing the last axis.
    return cv2.merge([cv2.extractChannel(image, channel) for channel in channel_order])


class ColorDistortion(Augmentation):
    """Randomly changes brightness, contrast, saturation, hue and channel order.

    Each step is applied with probability 1/2. Contrast is before or after saturation and hue with
    probability 1/2. Source: the SSD recipe (arXiv 1512.02325, section 2.2) with the released
    CentripetalNet's ranges.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        swap_channels: bool = True,
        image_format: str = "RGB",
    ):
        """
        Args:
            brightness: largest change, of 255.
            contrast, saturation: range of the factor.
            hue: largest change in degrees.
            swap_channels: whether channels may be permuted.
            image_format: "RGB" or "BGR".

        Raises:
            ValueError: if ``image_format`` is neither.
        """
        super().__init__()
        if image_format not in _TO_HSV:
            raise ValueError(
                f"ColorDistortion needs INPUT.FORMAT {sorted(_TO_HSV)}, got {image_format!r}"
            )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.swap_channels = swap_channels
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draws a distortion, which leaves boxes and masks unchanged."""
        shift = self._uniform(-self.brightness, self.brightness, neutral=0.0)
        gain = self._uniform(*self.contrast, neutral=1.0)
        contrast_first = self._coin()
        before, after = _LEVELS + shift, _LEVELS
        if contrast_first:
            before = before * gain
        else:
            after = after * gain
        order = np.random.permutation(3) if self.swap_channels and self._coin() else range(3)
        return ColorTransform(
            partial(
                distort_colors,
                image_format=self.image_format,
                before=_table(before),
                hue_shift=self._uniform(-self.hue, self.hue, neutral=0.0),
                saturation_gain=self._uniform(*self.saturation, neutral=1.0),
                after=_table(after),
                channel_order=tuple(order),
            )
        )

    @staticmethod
    def _coin() -> bool:
        return bool(np.random.randint(2))

    def _uniform(self, low: float, high: float, neutral: float) -> float:
        return float(np.random.uniform(low, high)) if self._coin() else neutral


class CropPadTransform(Transform):
    """Cuts a window out of an image and fills what is outside the image with a colour."""

    def __init__(
        self, x0: int, y0: int, width: int, height: int, image_size: tuple[int, int], fill
    ):
        """
        Args:
            x0, y0: the window's top-left corner in pixels of the image, possibly outside it.
            width, height: the window's size.
            image_size: (h0, w0) of the image.
            fill: a value for each channel, or one for all.
        """
        super().__init__()
        self.x0, self.y0 = x0, y0
        self.width, self.height = width, height
        self.image_size = tuple(image_size)
        self.fill = fill

    def _cut(self, image: np.ndarray, fill) -> np.ndarray:
        window = np.empty((self.height, self.width, *image.shape[2:]), dtype=image.dtype)
        window[:] = fill
        x0, y0 = max(self.x0, 0), max(self.y0, 0)
        x1 = min(self.x0 + self.width, image.shape[1])
        y1 = min(self.y0 + self.height, image.shape[0])
        if x0 < x1 and y0 < y1:
            inside = window[y0 - self.y0 : y1 - self.y0, x0 - self.x0 : x1 - self.x0]
            inside[:] = image[y0:y1, x0:x1]
        return window

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(h0, w0[, C]) to (height, width[, C])."""
        return self._cut(img, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h0, w0) to (height, width); 0 outside the image."""
        return self._cut(segmentation, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(M, 2) x, y in the image to x, y in the window."""
        return coords - np.asarray((self.x0, self.y0), dtype=coords.dtype)

    def inverse(self) -> "CropPadTransform":
        """Maps positions back; pixels that were cut away are filled."""
        height, width = self.image_size
        return CropPadTransform(
            -self.x0, -self.y0, width, height, (self.height, self.width), self.fill
        )


class RandomCenterCropPad(Augmentation):
    """Crops a window of random size around a random point, preferably with an object.

    The dataset mapper drops boxes whose centre is outside the window.
    Source: arXiv 1808.01244, section 4.1.
    """

    def __init__(
        self,
        size: tuple[int, int],
        ratios: Sequence[float],
        border: int,
        fill: Sequence[float],
        max_tries: int = 50,
    ):
        """
        Args:
            size: (height, width) of the window at ratio 1, in pixels.
            ratios: factors of ``size``, one of which is drawn.
            border: least distance in pixels from the window's centre to the image's edge, halved
                until twice of it is less than the image.
            fill: colour outside the image, for each channel.
            max_tries: most centres drawn until the centre of a box is inside the window.
        """
        super().__init__()
        self.size = tuple(size)
        self.ratios = tuple(ratios)
        self.border = border
        self.fill = np.asarray(fill).round()
        self.max_tries = max_tries

    def get_transform(self, image: np.ndarray, boxes: Optional[np.ndarray]) -> Transform:
        """
        Args:
            image: (h0, w0, 3).
            boxes: (M, 4) x0, y0, x1, y1 in pixels of the image, or None.
        """
        image_height, image_width = image.shape[:2]
        ratio = np.random.choice(self.ratios)
        height, width = (max(1, int(side * ratio)) for side in self.size)
        centers = None if boxes is None or not len(boxes) else (boxes[:, :2] + boxes[:, 2:]) / 2
        for _ in range(self.max_tries):
            x0 = self._center(image_width) - width // 2
            y0 = self._center(image_height) - height // 2
            if centers is None:
                break
            inside = (centers > (x0, y0)) & (centers < (x0 + width, y0 + height))
            if inside.all(axis=1).any():
                break
        return CropPadTransform(x0, y0, width, height, (image_height, image_width), self.fill)

    def _center(self, size: int) -> int:
        border = self.border
        while border and 2 * border >= size:
            border //= 2
        return np.random.randint(border, size - border)
