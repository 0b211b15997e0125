from . import datasets  # registers the silhouettes
from .dataset_mapper import CentripetalNetDatasetMapper, build_augmentations
from .transforms import ColorDistortion, CropPadTransform, RandomCenterCropPad

__all__ = [
    "CentripetalNetDatasetMapper",
    "ColorDistortion",
    "CropPadTransform",
    "RandomCenterCropPad",
    "build_augmentations",
    "datasets",
]
