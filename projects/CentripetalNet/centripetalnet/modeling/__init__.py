from .hourglass import StackedHourglass, build_hourglass_backbone
from .inference import optimize_for_inference
from .meta_arch import CentripetalNet
from .test_time_augmentation import CentripetalNetWithTTA

__all__ = [
    "CentripetalNet",
    "CentripetalNetWithTTA",
    "StackedHourglass",
    "build_hourglass_backbone",
    "optimize_for_inference",
]
