"""Instance masks of 28 x 28 pixels for detected boxes, from RoIAlign and a mask head.

Shapes: N images, H x W the feature map, h x w the canvas, P boxes of an image. Boxes are in pixels
of the canvas. Source: arXiv 2003.09119, section 3.3, with the mask branch of arXiv 1703.06870.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..structures import Corners, Findings
from .corner_matching import Matching, match_corners
from .feature_maps import as_xy
from .object_counts import count_per_process
from .selection import best_candidates


class InstanceMaskHead(nn.Module):
    """Detectron2's RoIAlign and mask head on the feature map of the last stack."""

    @configurable
    def __init__(
        self,
        *,
        pooler: ROIPooler,
        layers: nn.Module,
        num_proposals: int = 32,
        iou_threshold: float = 0.5,
        start_iter: int = 0,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            pooler: of scale 1, as its boxes are in cells.
            layers: a mask head of Detectron2, class-agnostic or not.
            num_proposals: decoded boxes per image used in training, the best by score.
            iou_threshold: least IoU of a decoded box with its object.
            start_iter: first iteration that trains masks.
            loss_weight: weight of the mask loss.
        """
        super().__init__()
        self.pooler = pooler
        self.layers = layers
        self.num_proposals = num_proposals
        self.iou_threshold = iou_threshold
        self.start_iter = start_iter
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg, channels: int):
        net, head = cfg.MODEL.CENTRIPETALNET, cfg.MODEL.ROI_MASK_HEAD
        resolution = head.POOLER_RESOLUTION
        # Detectron2's mask heads read the number of classes from this key.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = net.NUM_CLASSES
        return {
            "pooler": ROIPooler(
                output_size=resolution,
                scales=(1.0,),
                sampling_ratio=head.POOLER_SAMPLING_RATIO,
                pooler_type=head.POOLER_TYPE,
            ),
            "layers": build_mask_head(
                cfg, ShapeSpec(channels=channels, height=resolution, width=resolution)
            ),
            "num_proposals": net.MASK.NUM_PROPOSALS,
            "iou_threshold": net.MASK.IOU_THRESHOLD,
            "start_iter": net.MASK.START_ITER,
            "loss_weight": net.MASK.LOSS_WEIGHT,
        }

    def is_trained(self) -> bool:
        """Whether the current iteration trains masks."""
        return self.start_iter == 0 or get_event_storage().iter >= self.start_iter

    def proposals(
        self, corners: list[Corners], instances: list[Instances], matching: Matching
    ) -> list[Instances]:
        """Training samples of each image, see :func:`matched_proposals`; empty without corners.

        Args:
            corners: top-left and bottom-right corners from the last stack, or an empty list.
            instances: ``gt_boxes``, ``gt_classes`` and ``gt_masks`` of each image.
            matching: the way of matching.
        """
        if not corners:
            nothing = [x[:0] for x in instances]
            for x in nothing:
                x.proposal_boxes = x.gt_boxes
            return nothing
        no_border = corners[0].position.new_zeros(len(instances), 2)
        found = best_candidates(match_corners(*corners, no_border, matching), self.num_proposals)
        return [
            matched_proposals(boxes, scores, targets, self.iou_threshold)
            for boxes, scores, targets in zip(found.boxes, found.scores, instances)
        ]

    def losses(
        self, feature: Tensor, canvas_size: tuple[int, int], proposals: list[Instances]
    ) -> Tensor:
        """
        Args:
            feature: (N, C, H, W) of the last stack.
            canvas_size: (h, w) pixels.
            proposals: of each image, from :meth:`proposals`; may be empty.

        Returns:
            The weighted mask loss, a scalar. Averaged over processes, it is the mean over the
            proposals of all processes; 0 without proposals.
        """
        pooled = self._pool(feature, canvas_size, [x.proposal_boxes for x in proposals])
        mean_here = self.layers(pooled, proposals)["loss_mask"]
        count = pooled.new_full((), len(pooled))
        return mean_here * (count / count_per_process(count)) * self.loss_weight

    def probabilities(
        self, feature: Tensor, canvas_size: tuple[int, int], boxes: Tensor, classes: Tensor
    ) -> Tensor:
        """
        Args:
            feature: (1, C, H, W) of the last stack.
            canvas_size: (h, w) pixels.
            boxes: (P, 4).
            classes: (P,) integers in [0, C).

        Returns:
            (P, 1, 28, 28) probability that a pixel of the box belongs to the object.
        """
        pooled = self._pool(feature, canvas_size, [Boxes(boxes)])
        dtype = next(self.layers.parameters()).dtype
        detections = Instances(canvas_size, pred_classes=classes)
        (detections,) = self.layers(pooled.to(dtype), [detections])
        return detections.pred_masks.float()

    def probabilities_in(self, findings: Findings, boxes: Tensor, classes: Tensor) -> Tensor:
        """As :meth:`probabilities`, for boxes in pixels of the image.

        Args:
            findings: of the image.
            boxes: (P, 4).
            classes: (P,) integers in [0, C).
        """
        left, top = findings.border
        on_canvas = boxes + as_xy((top, left), boxes).repeat(2)
        return self.probabilities(findings.feature, findings.canvas_size, on_canvas, classes)

    def _pool(self, feature: Tensor, canvas_size: tuple[int, int], boxes: list[Boxes]) -> Tensor:
        """(sum of P, C, 14, 14). The exact stride is canvas / map: 511 / 128 pixels, not 4."""
        like = boxes[0].tensor
        cells_per_pixel = as_xy(feature.shape[-2:], like) / as_xy(canvas_size, like)
        scaled = [Boxes(x.tensor * cells_per_pixel.repeat(2)) for x in boxes]
        # RoIAlign coordinates in half precision would be wrong by whole cells.
        with torch.autocast(feature.device.type, enabled=False):
            return self.pooler([feature.float()], scaled)


def matched_proposals(
    boxes: Tensor, scores: Tensor, targets: Instances, iou_threshold: float
) -> Instances:
    """Training samples of one image: decoded boxes matched to objects, and the ground-truth boxes.

    Args:
        boxes: (P, 4) decoded boxes.
        scores: (P,) negative for padding and invalid pairs.
        targets: ``gt_boxes``, ``gt_classes`` and ``gt_masks`` of the image's G objects.
        iou_threshold: least IoU of a decoded box with its nearest object; others are dropped.

    Returns:
        ``proposal_boxes``, ``gt_classes`` and ``gt_masks`` of at most P + G proposals.
    """
    height, width = targets.image_size
    truth = targets.gt_boxes.tensor
    proposals = Boxes(boxes.to(truth))
    proposals.clip((height, width))
    objects = torch.arange(len(targets), device=truth.device)
    if len(targets) > 0 and len(proposals) > 0:
        overlap, nearest = pairwise_iou(proposals, targets.gt_boxes).max(dim=1)
        # A mask as index would wait for the GPU at each use.
        hits = ((overlap >= iou_threshold) & (scores >= 0)).nonzero()[:, 0]
        proposals, objects = proposals[hits].tensor, torch.cat((nearest[hits], objects))
        proposals = Boxes(torch.cat((proposals, truth)))
    else:
        proposals = Boxes(truth)
    return Instances(
        targets.image_size,
        proposal_boxes=proposals,
        gt_classes=targets.gt_classes[objects],
        gt_masks=targets.gt_masks[objects],
    )
