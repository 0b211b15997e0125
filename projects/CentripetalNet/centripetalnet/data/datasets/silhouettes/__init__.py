"""Silhouettes: a small detection dataset for the CPU, made of real outlines and photographs.

Outlines of real animals (`animal-mnist`, 28 x 28 pixels each) are painted at random sizes and in
random colours onto crops of the photographs that scikit-learn and matplotlib bring along. Outlines
and photograph regions of the training and the validation images are disjoint, so the validation AP
says whether a detector has learnt the classes and not the pictures.

Words of this package: an outline is one source silhouette, an object is an outline painted into an
image. H x W is an image in pixels, h x w a patch of one. Colours are BGR, 0..255, as cv2 has them.
"""

from .builder import build_silhouettes, register_silhouettes
from .spec import SPLITS, SilhouettesSpec

__all__ = ["SPLITS", "SilhouettesSpec", "build_silhouettes", "register_silhouettes"]
