"""Datasets that are built from installed packages; the import registers them."""

from .silhouettes import SilhouettesSpec, build_silhouettes, register_silhouettes

__all__ = ["SilhouettesSpec", "build_silhouettes", "register_silhouettes"]

register_silhouettes()
