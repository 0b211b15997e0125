"""Datasets that need no download by hand; importing this package registers them."""

from .silhouettes import SilhouettesSpec, build_silhouettes, register_silhouettes

__all__ = ["SilhouettesSpec", "build_silhouettes", "register_silhouettes"]

register_silhouettes()
