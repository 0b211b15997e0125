"""CentripetalNet (arXiv 2003.09119) for Detectron2; importing it registers everything."""

from typing import TYPE_CHECKING

from . import data, modeling
from .config import add_centripetalnet_config

if TYPE_CHECKING:
    from .predictor import load_predictor

__version__ = "0.1.0"

__all__ = ["add_centripetalnet_config", "data", "load_predictor", "modeling"]


def __getattr__(name: str):
    # Training does not need the imports of the predictor.
    if name == "load_predictor":
        from .predictor import load_predictor

        return load_predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
