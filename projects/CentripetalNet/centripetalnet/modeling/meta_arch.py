"""The detector: losses in training, boxes in inference.

Shapes: N images, h x w the canvas, H x W the feature map, P candidate boxes of an image.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import FPN, META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..layers import run_checkpointed
from ..structures import (
    Candidates,
    CornerCounts,
    Corners,
    CornerTargets,
    Findings,
    StepCounts,
)
from .corner_head import CornerBranch, CornerHead
from .corner_losses import LossOptions, corner_counts, corner_sums, heatmap_loss, shift_loss
from .corner_matching import Matching, build_corner_head, build_matching, match_corners
from .corner_search import find_corners, find_pooled_corners
from .corner_targets import batch_targets
from .feature_maps import as_xy, drop_unused_outputs, feature_shapes
from .mask_head import InstanceMaskHead
from .object_counts import count_per_process
from .selection import SelectionOptions, best_candidates, detections_of, scaled_to_output


@META_ARCH_REGISTRY.register()
class CentripetalNet(nn.Module):
    """Detects pairs of corners, by default as CentripetalNet (arXiv 2003.09119).

    ``matching`` decides how corners are paired: by the centres that they point to, or by embeddings
    as in CornerNet (arXiv 1808.01244).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        heads: Sequence[CornerHead],
        in_features: Optional[Sequence[str]] = None,
        num_classes: int,
        losses: LossOptions,
        matching: Matching,
        selection: SelectionOptions,
        mask_head: Optional[InstanceMaskHead] = None,
        canvas_bits: int,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str = "RGB",
        channels_last: bool = False,
        checkpoint_activations: bool = False,
        vis_period: int = 0,
    ):
        """
        Args:
            backbone: returns feature maps by name.
            heads: one per feature map of ``in_features``; inference uses the last.
            in_features: names of feature maps of equal stride, by default all of the backbone's.
            num_classes: C.
            losses, selection: hyperparameters.
            matching: the way of matching corners.
            mask_head: predicts a mask for each detection; None for no masks.
            canvas_bits: at test time the canvas of an h x w image is (h | bits) x (w | bits),
                rounded up to a multiple of the backbone's ``size_divisibility``.
            pixel_mean, pixel_std: per channel, in the order of ``input_format``.
            input_format: channel order of the images, "RGB" or "BGR".
            channels_last: whether to use the channels-last memory format.
            checkpoint_activations: whether training keeps only the input feature maps of the heads
                and recomputes their activations in the backward pass.
            vis_period: iterations between two visualizations in the event storage; 0 for none.

        Raises:
            ValueError: if the numbers of heads and feature maps differ, the feature maps are not
                the backbone's or not of one stride, or ``canvas_bits`` is not one less than a power
                of two.
        """
        super().__init__()
        shapes = feature_shapes(backbone, in_features)
        names = list(shapes)
        if len(names) != len(heads):
            raise ValueError(f"heads must have one entry per feature map {names}, got {len(heads)}")
        if canvas_bits < 0 or canvas_bits & (canvas_bits + 1):
            raise ValueError(
                "MODEL.CENTRIPETALNET.TEST_CANVAS_BITS must be one less than a power of two "
                f"(127, say), got {canvas_bits}"
            )
        if isinstance(backbone, FPN):
            drop_unused_outputs(backbone, names)
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.mask_head = mask_head
        self.feature_names = names
        self.stride = shapes[names[-1]].stride
        self.num_classes = num_classes
        self.loss_options = losses
        self.matching = matching
        self.selection = selection
        self.canvas_bits = canvas_bits
        self.input_format = input_format
        self.checkpoint_activations = checkpoint_activations
        self.vis_period = vis_period
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        net = cfg.MODEL.CENTRIPETALNET
        shapes, matching = feature_shapes(backbone, net.IN_FEATURES), build_matching(cfg)
        return {
            "backbone": backbone,
            "in_features": list(shapes),
            "heads": [build_corner_head(cfg, x.channels, matching) for x in shapes.values()],
            "num_classes": net.NUM_CLASSES,
            "losses": LossOptions.from_config(cfg),
            "matching": matching,
            "selection": SelectionOptions.from_config(cfg),
            "mask_head": (
                InstanceMaskHead(cfg, list(shapes.values())[-1].channels)
                if cfg.MODEL.MASK_ON
                else None
            ),
            "canvas_bits": net.TEST_CANVAS_BITS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "channels_last": net.CHANNELS_LAST,
            "checkpoint_activations": net.CHECKPOINT_ACTIVATIONS,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def untrained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the current iteration does not train yet."""
        if self.mask_head is None or self.mask_head.is_trained():
            return []
        return list(self.mask_head.parameters())

    def forward(self, batched_inputs: list[dict], counts: Optional[StepCounts] = None):
        """
        Args:
            batched_inputs: one dict for each image, as in Detectron2's models: ``image``
                (3, h0, w0) in [0, 255]; in training ``instances`` with ``gt_boxes`` and
                ``gt_classes``; in inference optionally the ``height`` and ``width`` of the output.
            counts: normalizers of the losses, from :meth:`step_counts`; by default of this batch.

        Returns:
            In training the losses ``loss_heatmap``, ``loss_offset`` and those of the way of
            matching, with a mask head also ``loss_mask``; in inference a list of
            ``{"instances": Instances}`` with ``pred_boxes``, ``scores`` and ``pred_classes``, with
            a mask head also ``pred_masks`` (P, height, width).
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self._training_canvas(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        losses = self.losses(images.tensor, instances, counts)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            # Here, since it imports this module and matplotlib.
            from ..explain import training_picture

            get_event_storage().put_image(*training_picture(self, batched_inputs))
        return losses

    def losses(
        self, images: Tensor, instances: list[Instances], counts: Optional[StepCounts] = None
    ) -> dict[str, Tensor]:
        """
        Args:
            images: (N, 3, h, w), normalised.
            instances: ``gt_boxes`` in pixels of the canvas and ``gt_classes``, for each image;
                with a mask head also ``gt_masks``.
            counts: see :meth:`forward`.

        Returns:
            The weighted losses, summed over the stacks.
        """
        options, canvas_size = self.loss_options, tuple(images.shape[-2:])
        features = self.backbone(images.contiguous(memory_format=self.memory_format))
        map_size = tuple(features[self.feature_names[-1]].shape[-2:])
        targets = batch_targets(
            instances, canvas_size, map_size, self.num_classes, options.min_overlap
        )
        losses = dict.fromkeys(("heatmap", "offset", *self.matching.losses_of), 0.0)
        corner_targets = targets.tl, targets.br
        of_corners = counts or [corner_counts(target) for target in corner_targets]
        masks_are_trained = self.mask_head is not None and self.mask_head.is_trained()
        for name, head in zip(self.feature_names, self.heads):
            # Masks are trained on boxes decoded from the last head.
            is_decoded = masks_are_trained and head is self.heads[-1]
            predictions, found = [], []
            for branch, target, count in zip((head.tl, head.br), corner_targets, of_corners):
                inputs = (branch, features[name], target, count, canvas_size, is_decoded)
                if self.checkpoint_activations:
                    results = run_checkpointed(branch, self._branch_losses, *inputs)
                else:
                    results = self._branch_losses(*inputs)
                of_heatmap, of_offset, predicted, corners = results
                # The mean of the two corners.
                losses["heatmap"] = losses["heatmap"] + of_heatmap / 2
                losses["offset"] = losses["offset"] + of_offset / 2
                predictions.append(predicted)
                found.append(corners)
            of_matching = self.matching.losses(
                predictions, targets, of_corners, options.smooth_l1_beta
            )
            for key, loss in of_matching.items():
                losses[key] = losses[key] + loss
        losses = {f"loss_{key}": self._weight(key) * loss for key, loss in losses.items()}
        if self.mask_head is not None:
            feature = features[self.feature_names[-1]]
            corners = found if masks_are_trained else []
            proposals = self.mask_head.proposals(corners, instances, self.matching)
            losses["loss_mask"] = self.mask_head.losses(feature, canvas_size, proposals)
            if counts is not None:
                num_boxes = images.new_full((), sum(len(x) for x in instances))
                losses["loss_mask"] *= count_per_process(num_boxes) / counts.num_boxes
        return losses

    @torch.no_grad()
    def step_counts(self, batches: list[list[dict]]) -> StepCounts:
        """Normalizers for the losses of several batches as if they were one.

        The mask loss, a mean over proposals that are not known yet, is weighted by the number of
        ground-truth boxes.

        Args:
            batches: each as for :meth:`forward` in training.
        """
        total = torch.zeros(5, device=self.device)
        for batch in batches:
            instances = [x["instances"].to(self.device) for x in batch]
            canvas_size = self._padded(
                *(max(x["image"].shape[axis] for x in batch) for axis in (-2, -1))
            )
            targets = batch_targets(
                instances,
                canvas_size,
                self.map_size(canvas_size),
                self.num_classes,
                self.loss_options.min_overlap,
            )
            num_boxes = total.new_full((1,), sum(len(x) for x in instances))
            total += torch.cat([corner_sums(targets.tl), corner_sums(targets.br), num_boxes])
        total = count_per_process(total)
        return StepCounts(CornerCounts(*total[:2]), CornerCounts(*total[2:4]), total[4])

    def _branch_losses(
        self,
        branch: CornerBranch,
        feature: Tensor,
        target: CornerTargets,
        counts: CornerCounts,
        canvas_size: tuple[int, int],
        is_decoded: bool,
    ) -> tuple[Tensor, Tensor, tuple, Optional[Corners]]:
        """Unweighted losses of heatmap and offset, predictions at targets, perhaps the corners."""
        pooled = branch.pooling(feature)
        heatmap, options = branch.heatmap(pooled), self.loss_options
        predictions, corners = branch.at_cells(pooled, target.cell), None
        exponents = options.focal_alpha, options.focal_beta
        of_heatmap = heatmap_loss(heatmap, target.heatmap, counts.heatmap, *exponents)
        of_offset = shift_loss(
            predictions.offset, target.offset, target.wins, counts.shifts, options.smooth_l1_beta
        )
        if is_decoded:
            with torch.no_grad():
                found = find_pooled_corners(branch, pooled, heatmap, canvas_size, self.matching)
            corners = found.corners
        return of_heatmap, of_offset, predictions, corners

    def _weight(self, loss: str) -> float:
        owner = self.matching if loss in self.matching.losses_of else self.loss_options
        return getattr(owner, f"{loss}_weight")

    def inference(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: see :meth:`forward`.

        Returns:
            ``{"instances": Instances}`` per image, scaled to ``height`` and ``width`` and clipped.
        """
        images = [x["image"] for x in batched_inputs]
        sizes = [tuple(image.shape[-2:]) for image in images]
        found = self.find(images)
        results = detections_of([x.candidates for x in found], sizes, self.selection)
        if self.mask_head is not None:
            for result, findings in zip(results, found):
                # Masks cover the visible part of a box.
                result.pred_boxes.clip(result.image_size)
                result.pred_masks = self.mask_head.probabilities_in(
                    findings, result.pred_boxes.tensor, result.pred_classes
                )
        return scaled_to_output(results, batched_inputs)

    def find(self, images: list[Tensor]) -> list[Findings]:
        """Candidates of each image before soft-NMS.

        Only images with the same canvas size share a batch, so that padding does not depend on the
        other images.

        Args:
            images: (3, h0, w0) each, in [0, 255].

        Returns:
            For each image its best candidates, in pixels of the image, and the feature map.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.canvas_size(image.shape[-2:]), []).append(i)
        results: list[Findings] = [None] * len(images)
        for canvas_size, members in groups.items():
            canvas, border = self.test_canvas([images[i] for i in members])
            feature = self.backbone(canvas)[self.feature_names[-1]]
            tl, br = (
                find_corners(branch, feature, canvas_size, self.matching).corners
                for branch in (self.heads[-1].tl, self.heads[-1].br)
            )
            borders = torch.stack([as_xy((top, left), self.pixel_mean) for left, top in border])
            found = match_corners(tl, br, borders, self.matching)
            found = best_candidates(found, self.selection.max_candidates)
            for row, i in enumerate(members):
                results[i] = Findings(
                    candidates=Candidates(*(x[row : row + 1] for x in found)),
                    feature=feature[row : row + 1],
                    canvas_size=canvas_size,
                    border=border[row],
                )
        return results

    def test_canvas(self, images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """The input of the backbone in inference.

        Args:
            images: (3, h0, w0) each, in [0, 255], with the same canvas size.

        Returns:
            (N, 3, h, w) normalised images padded with 0, and for each image the width of the
            padding (left, top) in pixels.
        """
        height, width = self.canvas_size(images[0].shape[-2:])
        canvas = torch.zeros(
            (len(images), len(self.pixel_mean), height, width),
            dtype=next(self.backbone.parameters()).dtype,
            device=self.device,
        )
        border = []
        for row, image in enumerate(images):
            # The centres of image and canvas coincide, both rounded down.
            top, left = height // 2 - image.shape[-2] // 2, width // 2 - image.shape[-1] // 2
            border.append((left, top))
            inside = canvas[row, :, top : top + image.shape[-2], left : left + image.shape[-1]]
            inside.copy_(self._normalize(image))
        return canvas.contiguous(memory_format=self.memory_format), border

    def canvas_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the canvas in inference, for an image of (h0, w0) pixels."""
        return self._padded(*(size | self.canvas_bits for size in image_size))

    def map_size(self, canvas_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the feature map of a canvas of (h, w) pixels."""
        height, width = canvas_size
        return -(-height // self.stride), -(-width // self.stride)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """The size rounded up to multiples, as ``ImageList.from_tensors`` does it."""
        multiple = max(self.backbone.size_divisibility, 1)
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def _normalize(self, image: Tensor) -> Tensor:
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def _training_canvas(self, batched_inputs: list[dict]) -> ImageList:
        return ImageList.from_tensors(
            [self._normalize(x["image"]) for x in batched_inputs], self.backbone.size_divisibility
        )
