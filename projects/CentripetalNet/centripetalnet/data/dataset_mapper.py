"""From a dataset's record to what the detector takes."""

import copy
from typing import List, Sequence

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from .transforms import ColorDistortion, RandomCenterCropPad


def build_augmentations(cfg, is_train: bool) -> List[T.Augmentation]:
    """The released recipe in training; in inference an image keeps its size.

    Args:
        cfg: see ``add_centripetalnet_config``.
        is_train: which of the two.

    Returns:
        What is done to an image, in order.
    """
    if not is_train:
        return []
    color, crop = cfg.INPUT.COLOR_DISTORTION, cfg.INPUT.CENTER_CROP_PAD
    augmentations: List[T.Augmentation] = []
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


class CentripetalNetDatasetMapper(DatasetMapper):
    """Detectron2's mapper with boxes given to the augmentations, and cut-off objects left out.

    An object stays if the centre of its box lies on the canvas after all transforms.
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
            The same with ``image`` (3, h, w) uint8 and, in training, ``instances``.

        Raises:
            OSError: if the image cannot be read; names it.
            SizeMismatchError: if its size is not the one in the annotations.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        file_name = dataset_dict["file_name"]
        try:
            image = utils.read_image(file_name, format=self.image_format)
        # PIL raises SyntaxError and ValueError, too, for files that are damaged.
        except (OSError, SyntaxError, ValueError) as error:
            raise OSError(
                f"cannot read the image {file_name}: {error}. Replace it, or take it out of the "
                "dataset's annotation file."
            ) from error
        utils.check_image_size(dataset_dict, image)

        annotations = [x for x in dataset_dict.pop("annotations", []) if not x.get("iscrowd", 0)]
        boxes = np.array(
            [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations],
            dtype=np.float64,
        ).reshape(-1, 4)
        aug_input = T.AugInput(image, boxes=boxes)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.is_train:
            return dataset_dict

        height, width = image.shape[:2]
        centers = (aug_input.boxes[:, :2] + aug_input.boxes[:, 2:]) / 2
        on_canvas = ((centers > 0) & (centers < (width, height))).all(axis=1)
        dataset_dict["annotations"] = [x for x, on in zip(annotations, on_canvas) if on]
        self._transform_annotations(dataset_dict, transforms, (height, width))
        return dataset_dict
