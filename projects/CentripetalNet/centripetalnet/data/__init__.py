from . import datasets  # registers the silhouettes
from .dataset_mapper import CentripetalNetDatasetMapper, build_augmentations, model_input
from .own_datasets import load_config, metadata_of_tests
from .training_stream import TrainingStream, build_training_loader
from .transforms import ColorDistortion, CropPadTransform, RandomCenterCropPad

__all__ = [
    "CentripetalNetDatasetMapper",
    "ColorDistortion",
    "CropPadTransform",
    "RandomCenterCropPad",
    "TrainingStream",
    "build_augmentations",
    "build_training_loader",
    "datasets",
    "load_config",
    "metadata_of_tests",
    "model_input",
]
