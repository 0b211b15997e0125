"""What decides how the dataset looks."""

from __future__ import annotations

import dataclasses

SPLITS = ("train", "val")

# Order of the labels in the source, which gives numbers only.
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
    """Everything that decides what the dataset looks like. Pairs are (lowest, highest), inclusive.

    Attributes:
        classes: the category names in the order of their ids; names of `SOURCE_CLASSES`. The five
            defaults are those that a nearest-neighbour classifier confuses least.
        num_train, num_val: images of the two splits.
        image_height, image_width: range of the images' sides, in pixels.
        objects_per_image: range of the number of objects tried; one for which no place is found is
            left out.
        object_side: range of the longer side of an object's whole (not only visible) box, in
            pixels, reached to within a pixel or two.
        aspect: range of the factor by which height / width of an outline is changed.
        overlap_probability: how often an object may hide a part of earlier ones at all.
        max_hidden: the largest part of an object's area that later objects may hide.
        placement_tries: positions tried before an object is left out.
        min_contrast: distance in RGB space, 0..442, that the object's colour keeps from four fifths
            of the pixels around it, where any of `color_tries` colours does.
        color_tries: random colours tried for one object.
        shading: largest relative change of an object's brightness from its middle to its edge.
        texture: largest relative change of an object's brightness by its low-frequency texture.
        crop_scale: range of pixels of the photograph per pixel of the image.
        train_photo_fraction: part of the photographs' width, from the left, for training; the rest
            is for validation.
        val_outline_fraction: part of the outlines of a class kept for validation.
        duplicate_iou: outlines at least this similar (IoU of the size-normalised masks, or with one
            of them mirrored) are the same animal and stay in one split.
        min_outline_side: shortest longer side of a source outline used, in pixels of the source.
        min_outline_share: smallest part of a source outline's area in its largest connected piece,
            which alone is used.
        max_outline_faded: largest area, relative to the outline's, of grey parts of the source that
            are no part of the outline. What has more is a portrait of which only shreds are left.
        seed: of all random numbers.
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
                f"classes is {self.classes!r}, but must be different names of {SOURCE_CLASSES}"
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
                    f"{name} is {pair!r}, but must be a pair (lowest, highest) from {lowest} on"
                )
        # Two pixels: a drawn outline may come out that much longer than asked for.
        smallest_side = min(self.image_height[0], self.image_width[0])
        if self.object_side[1] + 2 > smallest_side:
            raise ValueError(
                f"object_side is {self.object_side!r}, but must end at least 2 pixels below the "
                f"shortest image side, {smallest_side}"
            )
        for name in ("train_photo_fraction", "val_outline_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be above 0 and below 1"
                )
        for name in ("num_train", "num_val", "placement_tries", "color_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be at least 1")
