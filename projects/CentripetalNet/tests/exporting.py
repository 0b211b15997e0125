"""What the tests of exports and of their runtime share."""

import importlib.util

import pytest

from centripetalnet.commands import export as command
from centripetalnet.modeling import CentripetalShiftMatching

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(x) for x in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed",
)
# Thresholds with which an untrained model finds boxes.
THRESHOLDS = ("central_region_large", "central_region_small", "max_center_area")
ANYWHERE = CentripetalShiftMatching(**dict.fromkeys(THRESHOLDS, 9.0))


def run_export(arguments):
    command.run(command.get_parser().parse_args(arguments))
