from .centripetal_shift import CentripetalShiftMatching
from .corner_matching import MATCHING_REGISTRY, Matching
from .embedding import EmbeddingMatching
from .hourglass import StackedHourglass, build_hourglass_backbone
from .inference import optimize_for_inference
from .meta_arch import CentripetalNet
from .test_time_augmentation import CentripetalNetWithTTA
from .timm_backbone import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "MATCHING_REGISTRY",
    "CentripetalNet",
    "CentripetalNetWithTTA",
    "CentripetalShiftMatching",
    "EmbeddingMatching",
    "Matching",
    "StackedHourglass",
    "TimmBackbone",
    "build_hourglass_backbone",
    "build_timm_fpn_backbone",
    "optimize_for_inference",
]
