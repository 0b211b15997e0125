"""Matching by associative embeddings: CornerNet (arXiv 1808.01244).

Shapes: N images, C classes, H x W the feature map, K corners kept of each kind in each image, M
cells or ground-truth boxes. Section numbers are those of the paper.
"""

from dataclasses import dataclass
from typing import Callable, ClassVar, NamedTuple, Optional

from torch import Tensor

from ..structures import BoxTargets, CornerCounts, CornerPairs, Corners, pair_outcome
from .corner_head import CornerBranch, PredictionBranch
from .corner_matching import MATCHING_REGISTRY, Matching, in_image, mean_scores

EmbeddingOutcome = pair_outcome(
    "EmbeddingOutcome",
    EMBEDDING_DIFFERS=(
        "embedding differs",
        "Rejected: the embeddings differ by {distance:.2f}",
    ),
)


class EmbeddingMaps(NamedTuple):
    """Predicted maps of one corner."""

    heatmap: Tensor
    """(N, C, H, W) logits."""
    offset: Tensor
    """(N, 2, H, W) cells, x then y: corner minus its cell."""
    embedding: Tensor
    """(N, 1, H, W) of any unit: close for the two corners of an object, apart for two objects."""


class CornerEmbeddings(NamedTuple):
    """Predicted offsets and embeddings of one corner at M cells."""

    offset: Optional[Tensor]
    """(M, 2) cells; None if it is not needed."""
    embedding: Tensor
    """(M, 1)."""


class EmbeddingBranch(CornerBranch):
    """Branch with an embedding."""

    def __init__(self, channels: int, *, hidden_channels: int, **arguments):
        """
        Args:
            channels, hidden_channels, arguments: see :class:`CornerBranch`.
        """
        super().__init__(channels, hidden_channels=hidden_channels, **arguments)
        self.embedding = PredictionBranch(channels, hidden_channels, 1)

    def forward(self, feature: Tensor) -> EmbeddingMaps:
        """See :meth:`CornerBranch.forward`."""
        pooled = self.pooling(feature)
        return EmbeddingMaps(self.heatmap(pooled), self.offset(pooled), self.embedding(pooled))

    def at_cells(
        self, pooled: Tensor, cells: Tensor, needs_offset: bool = True
    ) -> CornerEmbeddings:
        """See :meth:`CornerBranch.at_cells`."""
        patches = self.patches_at(pooled, cells).values
        offset = self.offset.at_center(patches) if needs_offset else None
        return CornerEmbeddings(offset, self.embedding.at_center(patches))


def embedding_losses(
    tl: Tensor, br: Tensor, image_index: Tensor, usable: Tensor
) -> tuple[Tensor, Tensor]:
    """Pull and push loss of the embeddings of all objects of a batch.

    Args:
        tl, br: (M,) embeddings at the two corners of each box.
        image_index: (M,) integers, the image of each box.
        usable: (M,) bool, whether the box is an object.

    Returns:
        Two scalars, sums over images. With e the embeddings of the n objects of an image and m the
        mean of an object's two, pull is the mean over objects of (e_tl - m)^2 + (e_br - m)^2, and
        push the mean over ordered pairs of objects of max(0, 1 - |m_i - m_j|).

    Source: section 3.3, equations 4 and 5.
    """
    mean = (tl + br) / 2
    together = (image_index[:, None] == image_index) & usable[:, None] & usable
    num_objects = together.sum(dim=1).clamp(min=1)
    pull = ((tl - mean) ** 2 + (br - mean) ** 2) * usable / num_objects
    closeness = (1 - (mean[:, None] - mean).abs()).clamp(min=0) * together.fill_diagonal_(False)
    push = closeness.sum(dim=1) / (num_objects * (num_objects - 1)).clamp(min=1)
    return pull.sum(), push.sum()


@MATCHING_REGISTRY.register()
@dataclass(frozen=True)
class EmbeddingMatching(Matching):
    """Pairs corners of similar embeddings; the defaults are the released model's.

    A pair is a box if its corners have the same class, its width and height are positive, and the
    embeddings differ little.

    Source: sections 3.3 and 4.2.
    """

    max_embedding_distance: float = 0.5
    """Largest difference of the embeddings of two corners of one box."""
    pull_weight: float = 0.1
    push_weight: float = 0.1

    outcomes: ClassVar = EmbeddingOutcome
    losses_of: ClassVar = ("pull", "push")
    key_is_position: ClassVar = False

    def branch(self) -> Callable[..., EmbeddingBranch]:
        """See :meth:`Matching.branch`."""
        return EmbeddingBranch

    def losses(
        self,
        predictions: tuple[CornerEmbeddings, CornerEmbeddings],
        targets: BoxTargets,
        counts: tuple[CornerCounts, CornerCounts],
        smooth_l1_beta: float,
    ) -> dict[str, Tensor]:
        """See :meth:`Matching.losses`.

        As in the released models these are sums over the images of a process, whose gradients are
        averaged over processes. So they weigh more with more images in a process.
        """
        tl, br = (x.embedding.float()[:, 0] for x in predictions)
        losses = embedding_losses(tl, br, targets.image_index, targets.usable)
        return dict(zip(self.losses_of, losses))

    def keys(
        self, predictions: CornerEmbeddings, position: Tensor, inwards: int, pixels_per_cell: Tensor
    ) -> Tensor:
        """See :meth:`Matching.keys`: the embedding."""
        return predictions.embedding.float().view(*position.shape[:2], 1)

    def pairs(self, tl: Corners, br: Corners, border: Tensor) -> CornerPairs:
        """See :meth:`Matching.pairs`."""
        x0y0, x1y1, has_extent = in_image(tl, br, border[:, None].to(tl.position))
        distance = (tl.key[:, :, None] - br.key[:, None])[..., 0].abs()
        conditions = (
            tl.cls[:, :, None] == br.cls[:, None],
            has_extent,
            distance <= self.max_embedding_distance,
        )
        return CornerPairs(x0y0, x1y1, mean_scores(tl, br), conditions, distance, None)
