"""Maps records of a dataset to the detector's input."""

from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import Transform, TransformList
from PIL import Image
from pycocotools import mask as mask_util

from .check.images import TRANSPOSED_ORIENTATIONS, exif_orientation
from .transforms import ColorDistortion, RandomCenterCropPad


def build_augmentations(cfg, is_train: bool) -> list[T.Augmentation]:
    """Detectron2's ``ResizeShortestEdge``, in training followed by the released recipe.

    A size of 0 keeps the size of the image, whatever ``MAX_SIZE_TRAIN`` or ``MAX_SIZE_TEST`` is.

    Args:
        cfg: see ``add_centripetalnet_config``.
        is_train: whether for training or test.

    Returns:
        The augmentations in order.

    Raises:
        ValueError: if a size or ``INPUT.RANDOM_FLIP`` is invalid; names the key.
    """
    given = cfg.INPUT
    _check_sizes(given)
    if not is_train:
        if not given.MIN_SIZE_TEST:
            return []
        return [T.ResizeShortestEdge(given.MIN_SIZE_TEST, given.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation] = []
    # First, so that the other steps process fewer pixels.
    if any(given.MIN_SIZE_TRAIN):
        augmentations.append(
            T.ResizeShortestEdge(
                given.MIN_SIZE_TRAIN, given.MAX_SIZE_TRAIN, given.MIN_SIZE_TRAIN_SAMPLING
            )
        )
    color, crop = given.COLOR_DISTORTION, given.CENTER_CROP_PAD
    if color.ENABLED:
        augmentations.append(
            ColorDistortion(
                brightness=color.BRIGHTNESS,
                contrast=color.CONTRAST,
                saturation=color.SATURATION,
                hue=color.HUE,
                swap_channels=color.SWAP_CHANNELS,
                image_format=cfg.INPUT.FORMAT,
            )
        )
    augmentations += [
        RandomCenterCropPad(
            size=crop.SIZE,
            ratios=crop.RATIOS,
            border=crop.BORDER,
            fill=cfg.MODEL.PIXEL_MEAN,
            max_tries=crop.MAX_TRIES,
        ),
        T.Resize(tuple(crop.SIZE)),
    ]
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "none"):
        raise ValueError(
            "INPUT.RANDOM_FLIP must be 'horizontal' or 'none' for CentripetalNet, got "
            f"{cfg.INPUT.RANDOM_FLIP!r}"
        )
    if cfg.INPUT.RANDOM_FLIP == "horizontal":
        augmentations.append(T.RandomFlip())
    return augmentations


def model_input(image: np.ndarray, augmentations: T.AugmentationList, input_format: str) -> dict:
    """Converts an image to the model's input.

    Args:
        image: (h0, w0, 3) uint8 in BGR order, as OpenCV reads it.
        augmentations: those of :func:`build_augmentations` for test.
        input_format: channel order that the model expects, "RGB" or "BGR".

    Returns:
        ``image`` (3, h, w) uint8, resized as in evaluation; ``height`` h0 and ``width`` w0, which
        the model's boxes refer to.
    """
    height, width = image.shape[:2]
    augmented = T.AugInput(image[:, :, ::-1] if input_format == "RGB" else image)
    augmentations(augmented)
    # A copy, since PyTorch warns of arrays that are not writable.
    pixels = torch.as_tensor(np.array(augmented.image.transpose(2, 0, 1), order="C"))
    return {"image": pixels, "height": height, "width": width}


def _check_sizes(given: CfgNode) -> None:
    """Raises ValueError if a size of ``cfg.INPUT`` is invalid."""
    train, sampling = given.MIN_SIZE_TRAIN, given.MIN_SIZE_TRAIN_SAMPLING
    for key, sizes, smallest in (
        ("MIN_SIZE_TRAIN", train, 0),
        ("MAX_SIZE_TRAIN", (given.MAX_SIZE_TRAIN,), 1),
        ("MIN_SIZE_TEST", (given.MIN_SIZE_TEST,), 0),
        ("MAX_SIZE_TEST", (given.MAX_SIZE_TEST,), 1),
    ):
        if not sizes or not all(isinstance(x, int) and x >= smallest for x in sizes):
            raise ValueError(
                f"INPUT.{key} must be integers in pixels, at least {smallest}, got {given[key]}"
                + ("" if smallest else "; 0 keeps the size of the image")
            )
    if sampling not in ("choice", "range"):
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING must be 'choice' or 'range', got {sampling!r}"
        )
    if sampling == "range" and any(train) and not (len(train) == 2 and 0 < train[0] <= train[1]):
        raise ValueError(
            "INPUT.MIN_SIZE_TRAIN must be the lowest and the highest size, from 1, if "
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range', got {train}"
        )


class CentripetalNetDatasetMapper(DatasetMapper):
    """Detectron2's mapper that passes boxes to the augmentations and drops cut-off objects.

    An object is kept if the centre of its box is on the canvas after all transforms. In training,
    large JPEGs that the first augmentation shrinks are decoded at a reduced size, which takes a
    fraction of the time. Boxes and masks are then within a pixel of those of a full decode.
    """

    @configurable
    def __init__(self, is_train: bool, *, augmentations: Sequence[T.Augmentation], **kwargs):
        """
        Args:
            is_train: whether annotations are read.
            augmentations: as from :func:`build_augmentations`.
            kwargs: as for ``detectron2.data.DatasetMapper``.
        """
        super().__init__(is_train, augmentations=list(augmentations), **kwargs)
        first = next(iter(augmentations), None)
        # A size of 0 keeps the size of the image.
        shrinks = isinstance(first, T.ResizeShortestEdge) and all(first.short_edge_length)
        self.resize: Optional[T.ResizeShortestEdge] = first if is_train and shrinks else None

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: one image in Detectron2's dataset format.

        Returns:
            A copy with ``image`` (3, h, w) uint8 and, in training, ``instances``: ``gt_boxes``,
            ``gt_classes`` and, with masks, ``gt_masks``.

        Raises:
            ValueError: if the image's size is not that of the record, a box is not finite, or, with
                masks, an object has none in the format of ``INPUT.MASK_FORMAT``; names the image.
            OSError: if the image cannot be read; names it.
        """
        dataset_dict = dict(dataset_dict)
        file_name = dataset_dict["file_name"]
        try:
            image, full_size = self._read(file_name)
        # For a damaged file Pillow raises many types of errors.
        except Exception as error:
            raise OSError(
                f"cannot read the image {file_name}: {error}. Replace it, or remove it from the "
                "dataset's annotation file."
            ) from error
        try:
            # It reads the shape only.
            utils.check_image_size(dataset_dict, np.broadcast_to(0, full_size))
        except utils.SizeMismatchError as error:
            raise ValueError(str(error)) from error

        annotations = dataset_dict.pop("annotations", [])
        if not self.is_train:
            augmented = T.AugInput(image)
            self.augmentations(augmented)
            dataset_dict["image"] = _to_tensor(augmented.image)
            return dataset_dict

        annotations = [x for x in annotations if not x.get("iscrowd", 0)]
        boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
        boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(boxes).all():
            raise ValueError(
                f"{file_name} has the boxes {boxes.tolist()}; expected finite values in pixels"
            )
        transforms: list[Transform] = []
        if image.shape[:2] != full_size:
            # The pixels are reduced already.
            transforms.append(T.ResizeTransform(*full_size, *image.shape[:2]))
            boxes = transforms[0].apply_box(boxes)
        augmented = T.AugInput(image, boxes=boxes)
        transforms = TransformList([*transforms, self.augmentations(augmented)])
        size = augmented.image.shape[:2]
        boxes, kept = _boxes_on_canvas(augmented.boxes, size)
        annotations = [x for x, is_kept in zip(annotations, kept) if is_kept]
        classes = [x["category_id"] for x in annotations]
        instances = Instances(
            size,
            gt_boxes=Boxes(torch.as_tensor(boxes, dtype=torch.float32)),
            gt_classes=torch.as_tensor(classes, dtype=torch.int64),
        )
        if self.use_instance_mask:
            instances.gt_masks = self._masks(annotations, transforms, size, file_name)
        dataset_dict["image"] = _to_tensor(augmented.image)
        dataset_dict["instances"] = instances
        return dataset_dict

    def _read(self, file_name: str) -> tuple[np.ndarray, tuple[int, int]]:
        """Reads an image as Detectron2's ``read_image`` does, a large JPEG at a reduced size.

        Returns:
            (h, w, 3), at least as large as any size of ``resize``, and the size (h0, w0) of the
            whole image.
        """
        if self.resize is None:
            image = utils.read_image(file_name, format=self.image_format)
            return image, image.shape[:2]
        with PathManager.open(file_name, "rb") as file:
            image = Image.open(file)
            width, height = image.size
            needed = self.resize.get_output_shape(
                height, width, max(self.resize.short_edge_length), self.resize.max_size
            )
            # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, rounded up. Other formats give None.
            draft = image.draft(None, tuple(max(x, 1) for x in needed[::-1]))
            if exif_orientation(image) in TRANSPOSED_ORIENTATIONS:
                height, width = width, height
            if draft is not None and draft[1][2:] != image.size:
                # Removes the fraction of a pixel beyond the edge of the image.
                image = image.resize(image.size, Image.BILINEAR, box=draft[1])
            image = utils._apply_exif_orientation(image)
            return utils.convert_PIL_to_numpy(image, self.image_format), (height, width)

    def _masks(
        self,
        annotations: list[dict],
        transforms: Transform,
        size: tuple[int, int],
        file_name: str,
    ) -> Union[PolygonMasks, BitMasks]:
        """Masks of the kept objects, transformed like the image."""
        if not annotations:
            if self.instance_mask_format == "polygon":
                return PolygonMasks([])
            return BitMasks(torch.zeros(0, *size, dtype=torch.bool))
        moved = []
        for annotation in annotations:
            segmentation = annotation.get("segmentation")
            if not segmentation:
                raise ValueError(
                    f"MODEL.MASK_ON is True, but an object of {file_name} has no segmentation. "
                    "Complete the annotation file, or train without masks."
                )
            if isinstance(segmentation, dict):
                # A copy, since a resized mask may be read-only.
                segmentation = np.array(
                    transforms.apply_segmentation(mask_util.decode(segmentation))
                )
            else:
                # Copies, since resizing changes the coordinates in place.
                polygons = [np.array(x, dtype=np.float64).reshape(-1, 2) for x in segmentation]
                segmentation = [x.reshape(-1) for x in transforms.apply_polygons(polygons)]
            moved.append({**annotation, "segmentation": segmentation})
        try:
            return utils.annotations_to_instances(moved, size, self.instance_mask_format).gt_masks
        except ValueError as error:
            raise ValueError(
                f"the masks of {file_name} cannot be converted to INPUT.MASK_FORMAT "
                f"{self.instance_mask_format!r}: {error} Run-length encoded masks need 'bitmask'."
            ) from error


def _boxes_on_canvas(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes; keeps those with centre and area on the canvas. Returns boxes and kept flags."""
    height, width = size
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    clipped = np.clip(boxes, 0, (width, height, width, height))
    kept = (centers > 0) & (centers < (width, height)) & (clipped[:, 2:] > clipped[:, :2])
    kept = kept.all(axis=1)
    return clipped[kept], kept


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(h, w, 3) to (3, h, w)."""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
