"""Exported detectors give the model's candidates and run without this project."""

import dataclasses
import itertools
import json
import sys

import pytest
import torch
from conftest import calibrate, config, finding_detector, needs_timm, other_detectors
from detectron2.modeling import build_model
from exporting import ANYWHERE, THRESHOLDS, needs_onnx, run_export
from PIL import Image
from training import TINY_MASK

from centripetalnet import export
from centripetalnet.commands import run_onnx
from centripetalnet.structures import Candidates

# Height and width: smallest, around multiples of the canvas, odd, wide, tall, larger than 511.
SIZES = [
    *((1, 1), (1, 200), (200, 1), (2, 3), (17, 19)),
    *((127, 127), (128, 128), (129, 127), (255, 256), (383, 384)),
    *((97, 130), (250, 250), (101, 401), (33, 300), (300, 33)),
    *((64, 513), (520, 90), (511, 511), (512, 512), (600, 520)),
]


def pictures(sizes):
    return [export.noise(size)[0] for size in sizes]


def candidates(boxes, scores, classes):
    return Candidates(
        torch.tensor([boxes], dtype=torch.float32), torch.tensor([scores]), torch.tensor([classes])
    )


def assert_agrees(agreements, at_least):
    assert all(x.within_tolerance() for x in agreements), agreements
    assert sum(x.candidates for x in agreements) >= at_least


@needs_onnx
def test_onnx_agrees_with_the_model_on_images_of_any_size(golden_detector, onnx_file):
    agreements = export.check_agreement(
        golden_detector, export.load_onnx(str(onnx_file)), pictures(SIZES)
    )

    assert_agrees(agreements, at_least=3000)


@needs_onnx
def test_onnx_has_only_standard_operators_and_its_settings_as_metadata(golden_detector, onnx_file):
    import onnx

    proto = onnx.load(str(onnx_file))

    onnx.checker.check_model(proto, full_check=True)
    assert [x.domain for x in proto.opset_import] == [""] and proto.opset_import[0].version == 17
    assert {node.domain for node in proto.graph.node} == {""}
    assert sum(node.op_type == "Scan" for node in proto.graph.node) == 4
    metadata = {x.key: x.value for x in proto.metadata_props}
    assert metadata["input_format"] == "RGB" and metadata["canvas_bits"] == "127"
    assert json.loads(metadata["class_names"]) == list("abcde")
    assert metadata["min_size_test"] == "0" and metadata["max_size_test"] == "1333"
    assert json.loads(metadata["soft_nms"]) == dataclasses.asdict(golden_detector.selection)


@needs_onnx
@pytest.mark.parametrize("opset, average_cells", [(13, False), (16, True)])
def test_older_opsets_and_other_options_agree_too(golden_detector, tmp_path, opset, average_cells):
    path = str(tmp_path / "model.onnx")
    golden_detector.matching = dataclasses.replace(
        ANYWHERE,
        topk=37,
        local_maximum_kernel=5,
        weight_scores=True,
        average_cells=average_cells,
    )
    golden_detector.canvas_bits = 63

    export.export_onnx(golden_detector, path, {}, opset)

    agreements = export.check_agreement(
        golden_detector, export.load_onnx(path), pictures(SIZES[:6])
    )
    assert_agrees(agreements, at_least=50)


@needs_onnx
@pytest.mark.parametrize("opset", [9, 99])
def test_an_unsupported_opset_is_named(golden_detector, tmp_path, opset):
    with pytest.raises(ValueError, match=f"cannot write .* opset {opset} .*Use opset 17"):
        export.export_onnx(golden_detector, str(tmp_path / "model.onnx"), {}, opset)


@needs_onnx
def test_export_does_not_modify_the_model(golden_detector, tmp_path):
    before = {name: x.clone() for name, x in golden_detector.state_dict().items()}
    expected = golden_detector.find(pictures([(90, 100)]))[0].candidates

    export.export_onnx(golden_detector, str(tmp_path / "model.onnx"), {}, 17)

    assert all(torch.equal(x, before[name]) for name, x in golden_detector.state_dict().items())
    actual = golden_detector.find(pictures([(90, 100)]))[0].candidates
    assert all(torch.equal(x, y) for x, y in zip(actual, expected))


@pytest.fixture
def hourglass_104():
    """The released network with random weights and calibrated norms."""
    torch.manual_seed(0)
    model = build_model(config(MODEL__CENTRIPETALNET__NUM_CLASSES=3))
    model.matching = ANYWHERE
    calibrate(model, torch.randn(8, 3, 255, 255) * 1.2)
    return model.eval()


@pytest.mark.slow
@needs_onnx
def test_hourglass_104_agrees(hourglass_104, tmp_path):
    path = str(tmp_path / "model.onnx")

    export.export_onnx(hourglass_104, path, {}, 17)

    # They nearly fill canvases of 127 and 255: near a wide border all cells are alike.
    sizes = itertools.product((97, 113, 127, 233, 255), (101, 120, 127, 240))
    agreements = export.check_agreement(hourglass_104, export.load_onnx(path), pictures(sizes))
    assert_agrees(agreements, at_least=10000)
    assert all(x.candidates for x in agreements)
    boxes, scores = max(x.boxes for x in agreements), max(x.scores for x in agreements)
    print(f"boxes differ by up to {boxes:.1e} pixels, scores by {scores:.1e}")


def test_program_agrees_with_the_model_on_images_of_any_size(golden_detector, tmp_path):
    path = str(tmp_path / "model.pt2")

    metadata = export.metadata_of(golden_detector, [], min_size_test=0, max_size_test=1333)
    export.export_program(golden_detector, path, metadata)

    sizes = [size for size in SIZES if min(size) > 1]
    agreements = export.check_agreement(golden_detector, export.load_program(path), pictures(sizes))
    assert_agrees(agreements, at_least=3000)
    extra = {"input_format": "", "soft_nms": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["soft_nms"])["sigma"] == golden_detector.selection.sigma


@other_detectors
@needs_onnx
def test_onnx_of_other_detectors_agrees_with_the_model(detector, tmp_path):
    # So that sides of the canvas are odd multiples of 32, too, unlike those of the traced image.
    model = finding_detector(detector, MODEL__CENTRIPETALNET__TEST_CANVAS_BITS=31)
    thresholds = (*THRESHOLDS, "max_embedding_distance")
    anywhere = {x: 9.0 for x in thresholds if hasattr(model.matching, x)}
    model.matching = dataclasses.replace(model.matching, topk=50, **anywhere)
    path = str(tmp_path / "model.onnx")

    export.export_onnx(model, path, {}, opset=17)

    sizes = [(97, 130), (255, 256), (33, 300), (390, 130), (64, 161)]
    agreements = export.check_agreement(model, export.load_onnx(path), pictures(sizes))
    assert_agrees(agreements, at_least=500)


@needs_timm
def test_a_program_of_timm_under_fpn_agrees_with_the_model(tmp_path):
    model = finding_detector("timm")
    model.matching = ANYWHERE
    path = str(tmp_path / "model.pt2")

    export.export_program(model, path, {})

    agreements = export.check_agreement(
        model, export.load_program(path), pictures([(97, 130), (33, 300)])
    )
    assert_agrees(agreements, at_least=500)


def test_a_canvas_with_fewer_cells_than_corners_is_refused(golden_detector, tmp_path):
    golden_detector.canvas_bits = 31

    with pytest.raises(ValueError, match="TEST_CANVAS_BITS is 31.*64 cells.*TOPK is 100:"):
        export.ExportedDetector(golden_detector, lambda x, direction: x)


def test_a_file_without_the_only_box_does_not_agree():
    found, nothing = (candidates([[0, 0, 9, 9]], [score], [0]) for score in (0.5, -1.0))

    assert export.compare(found, found).within_tolerance()
    assert export.compare(nothing, nothing).within_tolerance()
    assert not export.compare(found, nothing).within_tolerance()
    assert not export.compare(nothing, found).within_tolerance()


def test_candidates_are_paired_in_any_order():
    boxes, scores, classes = [[0, 0, 9, 9], [0, 0, 5, 5], [1, 1, 3, 3]], [0.5, 0.5, -1.0], [0, 0, 1]
    expected = candidates(boxes, scores, classes)

    same = export.compare(expected, candidates(boxes[1::-1], scores[:2], classes[:2]))
    moved = export.compare(
        expected, candidates([[0, 0, 9, 9], [0, 0, 5, 5.5]], [0.5, 0.501], [0, 0])
    )
    other = export.compare(expected, candidates(boxes[:2], scores[:2], [0, 1]))
    lost = export.compare(expected, candidates(boxes, [-1.0] * 3, classes))

    assert same == export.Agreement(candidates=2, unpaired=0, boxes=0, scores=0)
    assert (
        moved.unpaired == 0
        and moved.boxes == 0.5
        and moved.scores == pytest.approx(0.001, rel=1e-3)
    )
    assert other.unpaired == 2 and lost.unpaired == 2
    assert same.within_tolerance()
    assert not any(x.within_tolerance() for x in (moved, other, lost))


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of the tiny model with masks."""
    model = build_model(config("quick_schedules/centripetal_mask_tiny"))
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


def arguments(weights, output, *more):
    options = ["--config-file", TINY_MASK, "--output", output, *more]
    return [str(x) for x in [*options, "--opts", "MODEL.WEIGHTS", weights]]


@needs_onnx
def test_the_tool_writes_class_names_and_prints_the_agreement(weights, tmp_path, capsys):
    output, picture = tmp_path / "model.onnx", tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)

    run_export(arguments(weights, output, "--check", picture))

    printed = capsys.readouterr().out
    assert f"{picture}: " in printed and "boxes differ by up to" in printed
    assert "masks are not exported" in printed and f"{output}: " in printed
    names = run_onnx.Detector(str(output)).class_names
    assert len(names) == 5 and "horse" in names
    assert sorted(tmp_path.iterdir()) == sorted((weights, output, picture))


@needs_onnx
def test_the_tool_writes_no_file_that_differs_from_the_model(weights, tmp_path, monkeypatch):
    output = tmp_path / "model.onnx"
    differing = export.Agreement(candidates=5, unpaired=0, boxes=0.5, scores=0.0)
    monkeypatch.setattr(export, "check_agreement", lambda *args: [differing, differing])

    with pytest.raises(ValueError, match="differs from the model by more than 0.01 pixels"):
        run_export(arguments(weights, output))

    assert [x.name for x in tmp_path.iterdir()] == [weights.name]


def test_the_tool_names_the_packages_to_install(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxruntime"):
        run_export(arguments(weights, tmp_path / "model.onnx"))
