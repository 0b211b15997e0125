"""Datasets that need no download by hand; importing this package registers them."""

import warnings

# `python -m` on the module below imports this package first and then warns that the module is
# loaded already. Its copy as __main__ only builds files, so the two copies cannot disagree.
warnings.filterwarnings(
    "ignore",
    message=r"'centripetalnet\.data\.datasets\.silhouettes' found in sys\.modules",
    category=RuntimeWarning,
)

from .silhouettes import (  # noqa: E402  (the filter must be in place before runpy looks)
    SilhouettesSpec,
    build_silhouettes,
    register_silhouettes,
)

__all__ = ["SilhouettesSpec", "build_silhouettes", "register_silhouettes"]

register_silhouettes()
