"""A detector as a file for programs without this project: ONNX, or PyTorch's exported program.

Both take one picture and give its best candidate boxes, as :class:`ExportedDetector` says. Soft-NMS
is an operator of neither and comes after them; ``tools/run_onnx.py`` has it in numpy. Masks are not
exported.

Shapes: h0 x w0 the picture, h x w the canvas, P candidate boxes.
"""

import dataclasses
import importlib
import inspect
import io
import json
import math
import os
import warnings
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import corner_pool, corner_pool_reference
from .modeling import CentripetalNet, optimize_for_inference
from .modeling.corner_head import CornerPooling
from .modeling.corner_matching import best_candidates, best_peaks, locate_corners, match_corners
from .modeling.hourglass import Hourglass
from .structures import Candidates

INPUT = "image"
OUTPUTS = ("boxes", "scores", "classes")
# Of the picture that is traced; nothing of it, nor of its size, is left in the file.
_EXAMPLE_SIZE = (150, 260)
_STANDARD_DOMAINS = ("", "ai.onnx")
_OWN_DOMAIN = "centripetalnet"

BOX_TOLERANCE = 1e-2
"""Pixels by which boxes may differ between a file and its model."""
SCORE_TOLERANCE = 1e-4
"""The same of scores."""
# Share of the candidates. Which corner is the last one kept is a matter of rounding where the next
# one is as good; each corner is in a hundredth of the candidates, and in those of both programs.
_MAX_UNPAIRED = 0.05
# In tolerances; farther apart, two candidates are not the same pair of corners.
_SAME_PAIR = 100
# Pixels of a side; torch.export wants a limit.
_LARGEST = 65536


class ExportedDetector(nn.Module):
    """A picture to its candidate boxes, in float32 and in operators that an export can write down.

    The numbers are those of ``CentripetalNet.find``; what of it works in place, with an operator of
    this project or on sizes as Python's integers, is done in another way here.
    """

    def __init__(self, model: CentripetalNet, corner_pool: Callable[[Tensor, str], Tensor]):
        """
        Args:
            model: on the CPU; it is left as it is.
            corner_pool: does what ``layers.corner_pool`` does.

        Raises:
            ValueError: if the smallest canvas has fewer cells than corners are kept, so that the
                number of candidates would depend on the picture.
        """
        super().__init__()
        smallest = (max(model.canvas_bits, 1) + 3) // 4
        if smallest**2 < model.matching.topk:
            raise ValueError(
                "an exported detector always gives as many candidates, but with "
                f"MODEL.CENTRIPETALNET.TEST_CANVAS_BITS {model.canvas_bits} a small picture has "
                f"{smallest**2} cells and MODEL.CENTRIPETALNET.TOPK is {model.matching.topk}: give "
                "it a larger canvas (127, as released) or fewer corners"
            )
        self.model = optimize_for_inference(model).to(memory_format=torch.contiguous_format)
        self.model.mask_head = None
        for module in self.model.modules():
            if isinstance(module, CornerPooling):
                module.corner_pool = corner_pool

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            image: (1, 3, h0, w0) float32 in [0, 255], channels in the order of the config.

        Returns:
            boxes (P, 4) x0, y0, x1, y1 in pixels of the picture, not clipped to it; scores (P,),
            best first, -1 for a place that no box took; classes (P,) int64.
        """
        model = self.model
        canvas, border = self._canvas(image)
        feature = model.backbone(canvas)[model.feature_names[-1]]
        corners = []
        for branch, inwards in ((model.heads[-1].tl, +1), (model.heads[-1].br, -1)):
            pooled = branch.pooling(feature)
            peaks = best_peaks(self._local_maxima(branch.heatmap(pooled)), model.matching.topk)
            shifts = branch.shifts_at(pooled, peaks.cell.flatten())
            corners.append(
                locate_corners(
                    peaks,
                    shifts.offset[None],
                    shifts.centripetal_shift[None],
                    inwards,
                    pooled.shape[-2:],
                    canvas.shape[-2:],
                )
            )
        found = match_corners(*corners, border, model.matching)
        found = best_candidates(found, model.selection.max_candidates)
        return found.boxes[0], found.scores[0], found.classes[0]

    def _canvas(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """The normalised picture in the middle of its canvas; (1, 2) the border left and above."""
        model = self.model
        canvas = (image - model.pixel_mean) / model.pixel_std
        border = []
        for axis in (3, 2):
            size = image.shape[axis]
            # size | bits, which no exported graph knows of sizes.
            canvas_size = size // (model.canvas_bits + 1) * (model.canvas_bits + 1)
            canvas_size = canvas_size + model.canvas_bits
            start = canvas_size // 2 - size // 2
            # Read cell by cell: torch.export would have to prove that no padding is negative.
            cell = torch.arange(canvas_size, device=image.device) - start
            inside = ((cell >= 0) & (cell < size)).to(canvas.dtype)
            canvas = canvas.index_select(axis, cell.clamp(0, size - 1))
            canvas = canvas * (inside if axis == 3 else inside[:, None])
            border.append(image.new_full((), start))
        return canvas, torch.stack(border)[None]

    def _local_maxima(self, heatmap: Tensor) -> Tensor:
        """Probability of the local maxima of (1, C, H, W) logits, 0 everywhere else."""
        kernel = self.model.matching.local_maximum_kernel
        probability = heatmap.sigmoid()
        largest = F.max_pool2d(probability, kernel, stride=1, padding=kernel // 2)
        return probability * (probability == largest)


class _CornerPoolNode(torch.autograd.Function):
    """Corner pooling as one node of the traced graph, replaced by :func:`_standard_corner_pool`."""

    @staticmethod
    def forward(ctx, input: Tensor, direction: str) -> Tensor:
        return corner_pool(input, direction)

    @staticmethod
    def symbolic(graph, input, direction: str):
        node = graph.op(f"{_OWN_DOMAIN}::CornerPool", input, direction_s=direction)
        return node.setType(input.type())


def _traced_corner_pool(input: Tensor, direction: str) -> Tensor:
    return _CornerPoolNode.apply(input, direction)


def export_onnx(model: CentripetalNet, path: str, metadata: Dict[str, str], opset: int) -> None:
    """Writes a detector as an ONNX file of standard operators, for pictures of any size.

    Args:
        model: on the CPU.
        path: the file.
        metadata: goes into the file, see :func:`metadata_of`.
        opset: version of the ONNX operators.

    Raises:
        ModuleNotFoundError: if onnx is not installed.
        ValueError: if the detector cannot be exported, or not in this opset.
    """
    onnx = import_optional("onnx")
    detector = ExportedDetector(model, _traced_corner_pool)
    options = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    traced = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # Some comparisons of sizes are settled while tracing; __init__ has seen to it that they
        # come out the same for every picture. That the tracer is old is no news either.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                detector,
                (noise(_EXAMPLE_SIZE),),
                traced,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={INPUT: {2: "height", 3: "width"}},
                opset_version=opset,
                custom_opsets={_OWN_DOMAIN: 1},
                **options,
            )
        # What an opset lacks comes as the one or the other, of PyTorch's version.
        except (RuntimeError, ValueError) as error:
            raise _opset_refused(opset, str(error).split("\n")[0]) from error
    proto = onnx.load_model_from_string(traced.getvalue())
    nodes = []
    for node in proto.graph.node:
        nodes += _standard_corner_pool(onnx, node) if node.domain == _OWN_DOMAIN else [node]
    # Emptying the graph would empty its nodes, too: they are copied first.
    copies = onnx.GraphProto(node=nodes).node
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    standard = [x for x in proto.opset_import if x.domain in _STANDARD_DOMAINS]
    del proto.opset_import[:]
    proto.opset_import.extend(standard)
    onnx.helper.set_model_props(proto, metadata)
    proto.doc_string = inspect.getdoc(ExportedDetector.forward)
    onnx.save_model(proto, path)
    try:
        # It refuses operators of any other domain than those left above.
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _opset_refused(opset, str(error)) from error


def _opset_refused(opset: int, reason: str) -> ValueError:
    return ValueError(
        f"PyTorch {torch.__version__} cannot write the detector in ONNX opset {opset} ({reason}); "
        "opset 17 is known to work"
    )


def _standard_corner_pool(onnx: ModuleType, node) -> list:
    """Corner pooling in standard operators, which have no cumulative maximum.

    Scan keeps the largest row (or column) so far, and reads and writes the map once: 1.5 to 3 ms
    for 1 x 128 x 128 x 128 in onnxruntime on two cores. Two other ways are as exact: windows that
    double (the maximum of the map and of itself shifted by 1, 2, 4, ... cells: 28 ms) and a max
    pooling as long as the map (18 to 24 ms). Both also need to know the largest size beforehand.

    Args:
        onnx: the package.
        node: what :class:`_CornerPoolNode` left in the graph.

    Returns:
        The nodes that take its place.
    """
    helper = onnx.helper
    direction = helper.get_attribute_value(node.attribute[0]).decode()
    axis = 2 if direction in ("top", "bottom") else 3
    backwards = int(direction in ("top", "left"))
    (source,), (target,) = node.input, node.output

    def line(name: str):
        return helper.make_tensor_value_info(f"{target}_{name}", onnx.TensorProto.FLOAT, None)

    body = helper.make_graph(
        nodes=[
            helper.make_node("Max", [f"{target}_so_far", f"{target}_line"], [f"{target}_now"]),
            helper.make_node("Identity", [f"{target}_now"], [f"{target}_pooled"]),
        ],
        name=f"{target}_step",
        inputs=[line("so_far"), line("line")],
        outputs=[line("now"), line("pooled")],
    )
    border = helper.make_tensor(f"{target}_border", onnx.TensorProto.INT64, [], [-backwards])
    return [
        helper.make_node("Constant", [], [f"{target}_border"], value=border),
        # The scan starts with the line at the border, whose maximum with itself is itself.
        helper.make_node("Gather", [source, f"{target}_border"], [f"{target}_first"], axis=axis),
        helper.make_node(
            "Scan",
            [f"{target}_first", source],
            [f"{target}_last", target],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[axis],
            scan_input_directions=[backwards],
            scan_output_axes=[axis],
            scan_output_directions=[backwards],
        ),
    ]


def export_program(model: CentripetalNet, path: str, metadata: Dict[str, str]) -> None:
    """Writes a detector as a program for ``torch.export.load``, for pictures from 2 x 2 pixels.

    Args:
        model: on the CPU.
        path: the file.
        metadata: goes into the file, see :func:`metadata_of`: each value under its key among
            ``extra_files`` of ``torch.export.load``.

    Raises:
        ValueError: if the detector cannot be exported, or PyTorch is older than 2.3.
    """
    if "strict" not in inspect.signature(torch.export.export).parameters:
        raise ValueError(
            f"a program for torch.export.load needs PyTorch 2.3, this is {torch.__version__}; "
            "export to ONNX instead"
        )
    detector = ExportedDetector(model, corner_pool_reference)
    for module in detector.modules():
        if isinstance(module, Hourglass):
            module.enlarge = _doubled
    height, width = (torch.export.Dim(x, max=_LARGEST) for x in ("height", "width"))
    with torch.no_grad():
        program = torch.export.export(
            detector,
            (noise(_EXAMPLE_SIZE),),
            dynamic_shapes={"image": {2: height, 3: width}},
            # Python runs the model, where strict would have its source code translated.
            strict=False,
        )
    torch.export.save(program, path, extra_files=metadata)


def _doubled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest upsampling of (N, C, H, W) to twice its height and width, or one cell less.

    PyTorch 2.3 cannot save what its own does: the ratio of two sizes that are not known yet.
    """
    for axis, length in zip((2, 3), size):
        cell = torch.arange(length, device=x.device)
        x = x.index_select(axis, torch.div(cell, 2, rounding_mode="floor"))
    return x


def metadata_of(model: CentripetalNet, class_names: Sequence[str]) -> Dict[str, str]:
    """What a user of an exported file has to know beside its inputs and outputs.

    Args:
        model: the detector.
        class_names: of its C classes, or nothing where they are not known.

    Returns:
        ``input_format`` "RGB" or "BGR", ``canvas_bits``, and as JSON ``class_names`` and
        ``soft_nms`` with the fields of ``SelectionOptions``.
    """
    return {
        "input_format": model.input_format,
        "canvas_bits": str(model.canvas_bits),
        "class_names": json.dumps(list(class_names)),
        "soft_nms": json.dumps(dataclasses.asdict(model.selection)),
    }


class Agreement(NamedTuple):
    """How far a file's candidates of one picture are from its model's."""

    candidates: int
    """How many the model gives."""
    unpaired: int
    """Those that only one of the two gives."""
    boxes: float
    """Largest difference of a coordinate, in pixels."""
    scores: float
    """Largest difference of a score."""

    def within_tolerance(self) -> bool:
        return (
            self.boxes <= BOX_TOLERANCE
            and self.scores <= SCORE_TOLERANCE
            and self.unpaired <= max(1, _MAX_UNPAIRED * self.candidates)
        )


def compare(expected: Candidates, actual: Candidates) -> Agreement:
    """Pairs the candidates of two programs, whose order may differ where scores hardly do.

    Args:
        expected, actual: of the same picture, one row each.
    """
    expected, actual = (
        Candidates(*(x[0][y.scores[0] >= 0] for x in y)) for y in (expected, actual)
    )
    if not len(expected.scores) or not len(actual.scores):
        return Agreement(len(expected.scores), len(expected.scores) + len(actual.scores), 0.0, 0.0)
    boxes = (expected.boxes[:, None] - actual.boxes).abs().amax(dim=2)
    scores = (expected.scores[:, None] - actual.scores).abs()
    distance = torch.maximum(boxes / BOX_TOLERANCE, scores / SCORE_TOLERANCE)
    distance[expected.classes[:, None] != actual.classes] = math.inf
    nearest, index = distance.min(dim=1)
    # Farther apart than this they are not the same pair of corners.
    paired = nearest < _SAME_PAIR
    unpaired = (~paired).sum() + (distance.amin(dim=0) >= _SAME_PAIR).sum()
    index = index[paired, None]
    return Agreement(
        candidates=len(expected.scores),
        unpaired=int(unpaired),
        boxes=float(boxes[paired].gather(1, index).max()) if len(index) else 0.0,
        scores=float(scores[paired].gather(1, index).max()) if len(index) else 0.0,
    )


def _boxes_of(candidates: Candidates) -> Candidates:
    """(P, ...) of one image, without places that no box took."""
    return Candidates(*(x[0][candidates.scores[0] >= 0] for x in candidates))


@torch.no_grad()
def check_agreement(
    model: CentripetalNet, run: Callable[[Tensor], Candidates], images: Sequence[Tensor]
) -> List[Agreement]:
    """Compares what a file's program and its model say of pictures.

    Args:
        model: the detector that was exported.
        run: the program: (1, 3, h0, w0) to candidates, one row.
        images: (3, h0, w0) each, in [0, 255].

    Returns:
        One entry for each picture.
    """
    model = optimize_for_inference(model)
    return [
        compare(model.find([image])[0].candidates, run(image[None].float())) for image in images
    ]


def load_onnx(path: str) -> Callable[[Tensor], Candidates]:
    """The program in an ONNX file, run by onnxruntime on the CPU.

    Raises:
        ModuleNotFoundError: if onnxruntime is not installed.
    """
    onnxruntime = import_optional("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Candidates:
        outputs = session.run(list(OUTPUTS), {INPUT: image.numpy()})
        return Candidates(*(torch.from_numpy(x)[None] for x in outputs))

    return run


def load_program(path: str) -> Callable[[Tensor], Candidates]:
    """The program in a file of ``torch.export``."""
    module = torch.export.load(path).module()

    def run(image: Tensor) -> Candidates:
        with torch.no_grad():
            return Candidates(*(x[None] for x in module(image)))

    return run


def import_optional(name: str) -> ModuleType:
    """A package that only ONNX export needs.

    Raises:
        ModuleNotFoundError: if it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX export needs {name} ({error}): python -m pip install onnx onnxruntime",
            name=error.name,
        ) from error


def noise(size: Tuple[int, int]) -> Tensor:
    """A random picture, the same each time.

    Args:
        size: (h0, w0).

    Returns:
        (1, 3, h0, w0) float32 in [0, 255].
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, *size), generator=generator).float()


@contextmanager
def finished(path: str) -> Iterator[str]:
    """A name for a file that becomes ``path`` when all went well, and is removed otherwise."""
    # PyTorch asks for the ending .pt2.
    root, ending = os.path.splitext(path)
    unfinished = f"{root}.unfinished{ending}"
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.remove(unfinished)
        raise
