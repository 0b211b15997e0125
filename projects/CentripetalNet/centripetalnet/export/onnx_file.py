"""The exported graph as an ONNX file of standard operators."""

import importlib
import inspect
import io
import warnings
from types import ModuleType
from typing import Callable

import torch
from torch import Tensor

from ..layers import corner_pool
from ..modeling import CentripetalNet
from ..structures import Candidates
from .detector import EXAMPLE_SIZE, INPUT, OUTPUTS, ExportedDetector, noise

_STANDARD_DOMAINS = ("", "ai.onnx")
_OWN_DOMAIN = "centripetalnet"


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


def export_onnx(model: CentripetalNet, path: str, metadata: dict[str, str], opset: int) -> None:
    """Writes a detector as an ONNX file of standard operators, for images of any size.

    Args:
        model: on the CPU.
        path: the file.
        metadata: of the file, see :func:`metadata_of`.
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
        # Warnings about comparisons of sizes, whose results are the same for every image after the
        # check in ExportedDetector, and about the deprecated tracer.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                detector,
                (noise(EXAMPLE_SIZE),),
                traced,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={INPUT: {2: "height", 3: "width"}},
                opset_version=opset,
                custom_opsets={_OWN_DOMAIN: 1},
                **options,
            )
        # PyTorch's exception for a missing operator depends on its version.
        except (RuntimeError, ValueError) as error:
            raise _opset_refused(opset, str(error).split("\n")[0]) from error
    proto = onnx.load_model_from_string(traced.getvalue())
    nodes = []
    for node in proto.graph.node:
        nodes += _standard_corner_pool(onnx, node) if node.domain == _OWN_DOMAIN else [node]
    # Copied first, since clearing the graph clears its nodes, too.
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
        # The checker refuses operators of all other domains.
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _opset_refused(opset, str(error)) from error


def _opset_refused(opset: int, reason: str) -> ValueError:
    return ValueError(
        f"PyTorch {torch.__version__} cannot write the detector in ONNX opset {opset} ({reason}). "
        "Use opset 17, which is tested."
    )


def _standard_corner_pool(onnx: ModuleType, node) -> list:
    """Corner pooling in standard ONNX operators, which have no cumulative maximum.

    Scan keeps the running maximum of rows (or columns), and reads and writes the map once: 1.5 to
    3 ms for 1 x 128 x 128 x 128 in onnxruntime on two cores. Alternatives with the same result are
    slower: the maximum of the map and of itself shifted by 1, 2, 4, ... cells takes 28 ms, a max
    pooling as long as the map 18 to 24 ms. Both also need the largest size in advance.

    Args:
        onnx: the package.
        node: the node of :class:`_CornerPoolNode` in the graph.

    Returns:
        The nodes that replace it.
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
        # The scan starts with the line at the border as its running maximum.
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


def load_onnx(path: str) -> Callable[[Tensor], Candidates]:
    """Loads an ONNX file for onnxruntime on the CPU.

    Raises:
        ModuleNotFoundError: if onnxruntime is not installed.
    """
    onnxruntime = import_optional("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Candidates:
        outputs = session.run(list(OUTPUTS), {INPUT: image.numpy()})
        return Candidates(*(torch.from_numpy(x)[None] for x in outputs))

    return run


def import_optional(name: str) -> ModuleType:
    """Imports a package that only the ONNX export needs.

    Raises:
        ModuleNotFoundError: if it is not installed. The message names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX export needs {name} ({error}): python -m pip install onnx onnxruntime",
            name=error.name,
        ) from error
