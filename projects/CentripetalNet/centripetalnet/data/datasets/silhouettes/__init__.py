"""Silhouettes: a small detection dataset for the CPU, made of real outlines and photographs.

Outlines of real animals (`animal-mnist`, 28 x 28 pixels each) are painted at random sizes and in
random colours onto crops of the photographs in scikit-learn and matplotlib. Training and validation
images share neither outlines nor regions of a photograph, so the validation AP measures
generalisation.

Terms: an outline is one source silhouette, an object is an outline painted into an image. H x W is
the size of an image in pixels, h x w of a patch. Colours are BGR, 0..255, as in cv2. Constants that
are pairs are (lowest, highest), inclusive.
"""

from .builder import SilhouettesSpec, build_silhouettes, register_silhouettes

__all__ = ["SilhouettesSpec", "build_silhouettes", "register_silhouettes"]
