"""A detector as a file for programs without this project: ONNX, or PyTorch's exported program.

Both take one picture and give its best candidate boxes, as :class:`ExportedDetector` says. Soft-NMS
is an operator of neither and comes after them; ``tools/run_onnx.py`` has it in numpy. Masks are not
exported.
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
