"""Parameters of the dataset."""

from __future__ import annotations

import dataclasses

SPLITS = ("train", "val")

# In the order of the source's integer labels.
SOURCE_CLASSES = (
    "bear",
    "bird",
    "cat",
    "cow",
    "dog",
    "elephant",
    "giraffe",
    "horse",
    "sheep",
    "zebra",
)


@dataclasses.dataclass(frozen=True)
class SilhouettesSpec:
    """All parameters of the dataset. Pairs are (lowest, highest), inclusive.

    Attributes:
        classes: the category names in the order of their ids; names of `SOURCE_CLASSES`. The five
            defaults are those that a nearest-neighbour classifier confuses least.
        num_train, num_val: images of the two splits.
        image_height, image_width: range of the images' sides, in pixels.
        objects_per_image: range of the number of objects tried; objects without a free place are
            left out.
        object_side: range of the longer side of an object's full box, hidden parts included, in
            pixels, up to two pixels more or less.
        aspect: range of the factor on height / width of an outline.
        overlap_probability: probability that an object may hide parts of earlier ones.
        max_hidden: largest fraction of an object's area that later objects may hide.
        placement_tries: positions tried before an object is left out.
        min_contrast: least distance in RGB space, 0..442, of the object's colour from four fifths
            of the pixels around it, if any of `color_tries` colours has it.
        color_tries: random colours tried per object.
        shading: largest relative change of an object's brightness from its middle to its edge.
        texture: largest relative change of an object's brightness by its low-frequency texture.
        crop_scale: range of pixels of the photograph per pixel of the image.
        train_photo_fraction: fraction of the photographs' width, from the left, for training; the
            rest is for validation.
        val_outline_fraction: fraction of the outlines of a class for validation.
        duplicate_iou: outlines at least this similar (IoU of the size-normalised masks, or with one
            of them mirrored) count as the same animal and are put into the same split.
        min_outline_side: least longer side of a source outline, in pixels of the source.
        min_outline_share: least fraction of a source outline's area in its largest connected piece,
            which alone is used.
        max_outline_faded: largest area of grey parts of the source outside the outline, relative to
            the outline's area. Sources with more are incomplete portraits.
        seed: for all random numbers.
    """

    classes: tuple[str, ...] = ("horse", "cow", "elephant", "bear", "bird")
    num_train: int = 4000
    num_val: int = 300
    image_height: tuple[int, int] = (96, 127)
    image_width: tuple[int, int] = (96, 127)
    objects_per_image: tuple[int, int] = (1, 4)
    object_side: tuple[int, int] = (36, 88)
    aspect: tuple[float, float] = (0.8, 1.25)
    overlap_probability: float = 0.3
    max_hidden: float = 0.25
    placement_tries: int = 20
    min_contrast: float = 90.0
    color_tries: int = 16
    shading: float = 0.2
    texture: float = 0.15
    crop_scale: tuple[float, float] = (0.75, 1.75)
    train_photo_fraction: float = 0.7
    val_outline_fraction: float = 0.2
    duplicate_iou: float = 0.95
    min_outline_side: int = 16
    min_outline_share: float = 0.9
    max_outline_faded: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.classes if name not in SOURCE_CLASSES]
        if unknown or not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"classes is {self.classes!r}, expected different names of {SOURCE_CLASSES}"
            )
        for name, lowest in (
            ("image_height", 1),
            ("image_width", 1),
            ("objects_per_image", 1),
            ("object_side", 1),
            ("aspect", 1e-3),
            ("crop_scale", 1e-3),
        ):
            pair = getattr(self, name)
            if len(pair) != 2 or not lowest <= pair[0] <= pair[1]:
                raise ValueError(
                    f"{name} is {pair!r}, expected a pair (lowest, highest) from {lowest} on"
                )
        # Two pixels, since a drawn outline may be that much longer than its drawn size.
        smallest_side = min(self.image_height[0], self.image_width[0])
        if self.object_side[1] + 2 > smallest_side:
            raise ValueError(
                f"object_side is {self.object_side!r}, expected an end at least 2 pixels below the "
                f"shortest image side, {smallest_side}"
            )
        for name in ("train_photo_fraction", "val_outline_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected above 0 and below 1")
        for name in ("num_train", "num_val", "placement_tries", "color_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected at least 1")
