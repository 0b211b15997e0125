"""CentripetalNet (arXiv 2003.09119) for Detectron2; importing it registers everything."""

from . import data, modeling
from .config import add_centripetalnet_config

__version__ = "0.1.0"

__all__ = ["add_centripetalnet_config", "data", "modeling"]
