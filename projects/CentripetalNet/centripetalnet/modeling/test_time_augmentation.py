"""Test-time augmentation: horizontal flips and several scales, merged by one soft-NMS."""

from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import CentripetalNetDatasetMapper
from ..structures import Candidates
from .meta_arch import CentripetalNet
from .selection import detections_of, scaled_to_output


class View(NamedTuple):
    """One augmented version of an image."""

    image: Tensor
    """(3, h, w) in [0, 255]."""
    scale_x: float
    scale_y: float
    """Size of the view over size of the image."""
    mirrored: bool


class CentripetalNetWithTTA(nn.Module):
    """CentripetalNet with test-time augmentation; called like the model itself.

    The candidates of all views of an image are mapped to the image and go through one soft-NMS.
    Masks are the mean over the views. Source: arXiv 2003.09119, section 4.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        flip: bool,
        scales: Sequence[float],
        mapper: Optional[Callable[[dict], dict]] = None,
    ):
        """
        Args:
            model: a CentripetalNet, or one in DistributedDataParallel.
            flip: whether to add the horizontal flip of each view.
            scales: sizes of the views over the size of ``image``, which may be resized already.
            mapper: reads and resizes the image of an input without ``image``; by default it keeps
                the size.

        Raises:
            TypeError: if the model is not a CentripetalNet.
            ValueError: if ``scales`` is empty or a scale is not positive.
        """
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not isinstance(model, CentripetalNet):
            raise TypeError(f"this TTA expects CentripetalNet, got a {type(model).__name__}")
        if not scales or min(scales) <= 0:
            raise ValueError(f"TEST.AUG.SCALES must be positive numbers, got {list(scales)}")
        self.model = model
        self.flip = flip
        self.scales = list(scales)
        self.mapper = mapper or CentripetalNetDatasetMapper(
            is_train=False, augmentations=[], image_format=model.input_format
        )

    @classmethod
    def from_config(cls, cfg, model: nn.Module):
        return {
            "model": model,
            "flip": cfg.TEST.AUG.FLIP,
            "scales": cfg.TEST.AUG.SCALES,
            "mapper": CentripetalNetDatasetMapper(cfg, is_train=False),
        }

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: as for the model; ``file_name`` may replace ``image``.

        Returns:
            As the model's inference.
        """
        batched_inputs = [x if "image" in x else self.mapper(x) for x in batched_inputs]
        results = [self.detect(x["image"]) for x in batched_inputs]
        return scaled_to_output(results, batched_inputs)

    def detect(self, image: Tensor) -> Instances:
        """Final boxes of one image, with masks if the model has a mask head.

        Args:
            image: (3, h0, w0) in [0, 255].

        Returns:
            Boxes in pixels of the image, best first, clipped only with masks. Masks are the mean
            over the views.
        """
        views = self.views(image)
        found = self.model.find([view.image for view in views])
        merged = self.merged([x.candidates for x in found], views)
        size = tuple(image.shape[-2:])
        (result,) = detections_of([merged], [size], self.model.selection)
        if self.model.mask_head is not None:
            # Masks cover the visible part of a box.
            result.pred_boxes.clip(size)
            masks = []
            for view, findings in zip(views, found):
                boxes = self.in_view(result.pred_boxes.tensor, view)
                mask = self.model.mask_head.probabilities_in(findings, boxes, result.pred_classes)
                masks.append(mask.flip(-1) if view.mirrored else mask)
            result.pred_masks = torch.stack(masks).mean(dim=0)
        return result

    @classmethod
    def merged(cls, found: list[Candidates], views: list[View]) -> Candidates:
        """Candidates of all views of an image as one row, in pixels of the image.

        Args:
            found: of each view, (1, P, ...) in its pixels.
            views: of one image.
        """
        boxes = [cls._in_image(candidates.boxes, view) for candidates, view in zip(found, views)]
        return Candidates(
            torch.cat(boxes, dim=1),
            torch.cat([x.scores for x in found], dim=1),
            torch.cat([x.classes for x in found], dim=1),
        )

    def views(self, image: Tensor) -> list[View]:
        """
        Args:
            image: (3, h0, w0) in [0, 255].

        Returns:
            The image at each scale, each followed by its horizontal flip if ``flip`` is on.
        """
        height, width = image.shape[-2:]
        views = []
        for scale in self.scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = image if size == (height, width) else _resized(image, size)
            ratio = size[1] / width, size[0] / height
            views.append(View(scaled, *ratio, mirrored=False))
            if self.flip:
                views.append(View(scaled.flip(-1), *ratio, mirrored=True))
        return views

    @staticmethod
    def _in_image(boxes: Tensor, view: View) -> Tensor:
        """(..., 4) boxes in pixels of a view to pixels of the image."""
        x0, y0, x1, y1 = boxes.unbind(dim=-1)
        if view.mirrored:
            x0, x1 = view.image.shape[-1] - x1, view.image.shape[-1] - x0
        return torch.stack(
            (x0 / view.scale_x, y0 / view.scale_y, x1 / view.scale_x, y1 / view.scale_y), dim=-1
        )

    @staticmethod
    def in_view(boxes: Tensor, view: View) -> Tensor:
        """(..., 4) boxes in pixels of the image to pixels of a view."""
        x0, y0, x1, y1 = boxes.unbind(dim=-1)
        x0, x1 = x0 * view.scale_x, x1 * view.scale_x
        if view.mirrored:
            x0, x1 = view.image.shape[-1] - x1, view.image.shape[-1] - x0
        return torch.stack((x0, y0 * view.scale_y, x1, y1 * view.scale_y), dim=-1)


def _resized(image: Tensor, size) -> Tensor:
    pixels = image.permute(1, 2, 0).cpu().numpy()
    resize = ResizeTransform(*pixels.shape[:2], *size)
    return torch.as_tensor(np.ascontiguousarray(resize.apply_image(pixels).transpose(2, 0, 1)))
