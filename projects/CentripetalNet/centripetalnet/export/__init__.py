"""Export of a detector to ONNX or to a program of ``torch.export``, which run without this project.

Both map one image to its best candidate boxes, see :class:`ExportedDetector`. Neither has an
operator for soft-NMS, which follows in ``tools/run_onnx.py``. Masks are not exported.
"""

from .agreement import BOX_TOLERANCE, SCORE_TOLERANCE, Agreement, check_agreement, compare
from .detector import ExportedDetector, metadata_of, noise
from .onnx_file import export_onnx, import_optional, load_onnx
from .program_file import export_program, load_program

__all__ = [
    "BOX_TOLERANCE",
    "SCORE_TOLERANCE",
    "Agreement",
    "ExportedDetector",
    "check_agreement",
    "compare",
    "export_onnx",
    "export_program",
    "import_optional",
    "load_onnx",
    "load_program",
    "metadata_of",
    "noise",
]
