"""Exported detectors give the model's candidates and run without this project."""

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PROJECT, config, finding_detector, needs_timm, other_backbones
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from PIL import Image
from training import TINY_MASK

from centripetalnet import export, load_predictor
from centripetalnet.commands import export as command
from centripetalnet.commands import run_onnx
from centripetalnet.export import agreement
from centripetalnet.layers import batched_soft_nms
from centripetalnet.modeling.corner_matching import MatchingOptions
from centripetalnet.structures import Candidates

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(x) for x in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed",
)
needs_program = pytest.mark.skipif(
    tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 3),
    reason="torch.export.export has no strict=False before PyTorch 2.3",
)
TOOLS = PROJECT / "tools"
# Height and width: smallest, around multiples of the canvas, odd, wide, tall, larger than 511.
SIZES = [
    *((1, 1), (1, 200), (200, 1), (2, 3), (17, 19)),
    *((127, 127), (128, 128), (129, 127), (255, 256), (383, 384)),
    *((97, 130), (250, 250), (101, 401), (33, 300), (300, 33)),
    *((64, 513), (520, 90), (511, 511), (512, 512), (600, 520)),
]
# Thresholds with which an untrained model finds boxes.
ANYWHERE = MatchingOptions(central_region_large=9.0, central_region_small=9.0, max_center_area=9.0)


def pictures(sizes):
    return [export.noise(size)[0] for size in sizes]


def candidates(boxes, scores, classes):
    return Candidates(
        torch.tensor([boxes], dtype=torch.float32), torch.tensor([scores]), torch.tensor([classes])
    )


@pytest.fixture
def model(golden_model):
    model = golden_model[0].eval()
    model.matching = ANYWHERE
    return model


@pytest.fixture
def onnx_file(model, tmp_path):
    path = tmp_path / "model.onnx"
    metadata = export.metadata_of(model, list("abcde"), min_size_test=0, max_size_test=1333)
    export.export_onnx(model, str(path), metadata, opset=17)
    return path


def assert_agrees(agreements, at_least):
    assert all(x.within_tolerance() for x in agreements), agreements
    assert sum(x.candidates for x in agreements) >= at_least


@needs_onnx
def test_onnx_agrees_with_the_model_on_images_of_any_size(model, onnx_file):
    agreements = export.check_agreement(model, export.load_onnx(str(onnx_file)), pictures(SIZES))

    assert_agrees(agreements, at_least=3000)


@needs_onnx
def test_onnx_has_only_standard_operators_and_its_settings_as_metadata(model, onnx_file):
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
    assert json.loads(metadata["soft_nms"]) == dataclasses.asdict(model.selection)


@needs_onnx
@pytest.mark.parametrize("opset, average_cells", [(13, False), (16, True)])
def test_older_opsets_and_other_options_agree_too(model, tmp_path, opset, average_cells):
    path = str(tmp_path / "model.onnx")
    model.matching = dataclasses.replace(
        ANYWHERE,
        topk=37,
        local_maximum_kernel=5,
        weight_scores=True,
        average_cells=average_cells,
    )
    model.canvas_bits = 63

    export.export_onnx(model, path, {}, opset)

    agreements = export.check_agreement(model, export.load_onnx(path), pictures(SIZES[:6]))
    assert_agrees(agreements, at_least=50)


@needs_onnx
@pytest.mark.parametrize("opset", [9, 99])
def test_an_unsupported_opset_is_named(model, tmp_path, opset):
    with pytest.raises(ValueError, match=f"cannot write .* opset {opset} .*Use opset 17"):
        export.export_onnx(model, str(tmp_path / "model.onnx"), {}, opset)


@needs_onnx
def test_export_does_not_modify_the_model(model, tmp_path):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    expected = model.find(pictures([(90, 100)]))[0].candidates

    export.export_onnx(model, str(tmp_path / "model.onnx"), {}, 17)

    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    actual = model.find(pictures([(90, 100)]))[0].candidates
    assert all(torch.equal(x, y) for x, y in zip(actual, expected))


@pytest.fixture
def hourglass_104():
    """The released network with random weights and calibrated norms."""
    torch.manual_seed(0)
    model = build_model(config(MODEL__CENTRIPETALNET__NUM_CLASSES=3))
    model.matching = ANYWHERE
    norms = [x for x in model.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        features = model.backbone(torch.randn(8, 3, 255, 255) * 1.2)
        for head, feature in zip(model.heads, features.values()):
            head(feature)
    for norm in norms:
        # The statistics are of one batch. Without a margin, features of other sizes explode.
        norm.running_var *= 1.5
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


@needs_program
def test_program_agrees_with_the_model_on_images_of_any_size(model, tmp_path):
    path = str(tmp_path / "model.pt2")

    metadata = export.metadata_of(model, [], min_size_test=0, max_size_test=1333)
    export.export_program(model, path, metadata)

    sizes = [size for size in SIZES if min(size) > 1]
    agreements = export.check_agreement(model, export.load_program(path), pictures(sizes))
    assert_agrees(agreements, at_least=3000)
    extra = {"input_format": "", "soft_nms": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["soft_nms"])["sigma"] == model.selection.sigma


@other_backbones
@needs_onnx
def test_onnx_of_other_backbones_agrees_with_the_model(backbone, tmp_path):
    # So that sides of the canvas are odd multiples of 32, too, unlike those of the traced image.
    model = finding_detector(backbone, MODEL__CENTRIPETALNET__TEST_CANVAS_BITS=31)
    model.matching = dataclasses.replace(ANYWHERE, topk=50)
    path = str(tmp_path / "model.onnx")

    export.export_onnx(model, path, {}, opset=17)

    sizes = [(97, 130), (255, 256), (33, 300), (390, 130), (64, 161)]
    agreements = export.check_agreement(model, export.load_onnx(path), pictures(sizes))
    assert_agrees(agreements, at_least=500)


@needs_timm
@needs_program
def test_a_program_of_timm_under_fpn_agrees_with_the_model(tmp_path):
    model = finding_detector("timm")
    model.matching = ANYWHERE
    path = str(tmp_path / "model.pt2")

    export.export_program(model, path, {})

    agreements = export.check_agreement(
        model, export.load_program(path), pictures([(97, 130), (33, 300)])
    )
    assert_agrees(agreements, at_least=500)


def test_a_canvas_with_fewer_cells_than_corners_is_refused(model, tmp_path):
    model.canvas_bits = 31

    with pytest.raises(ValueError, match="TEST_CANVAS_BITS is 31.*64 cells.*TOPK is 100:"):
        export.ExportedDetector(model, lambda x, direction: x)


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


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("sigma", [0.5, 1e-60])
@needs_onnx
def test_soft_nms_in_numpy_agrees_with_the_project(method, sigma):
    soft_nms = run_onnx.soft_nms
    generator = np.random.default_rng(0)
    for count in (0, 1, 40, 1000):
        corner = generator.uniform(0, 200, (count, 2))
        # Some boxes have no area.
        size = np.maximum(generator.uniform(-10, 100, (count, 2)), 0)
        boxes = np.concatenate((corner, corner + size), axis=1).astype(np.float32)
        scores = generator.uniform(-0.1, 1, count).astype(np.float32)
        classes = generator.integers(0, 3, count)
        options = {"method": method, "sigma": sigma, "iou_threshold": 0.3, "min_score": 0.02}

        kept, lowered = soft_nms(boxes, scores, classes, max_detections=100, **options)

        tensors = (torch.from_numpy(x)[None] for x in (boxes, scores, classes))
        expected, expected_scores = batched_soft_nms(*tensors, max_detections=100, **options)
        taken = expected_scores[0] >= 0
        assert kept.tolist() == expected[0][taken].tolist()
        np.testing.assert_allclose(lowered, expected_scores[0][taken].numpy(), atol=1e-6)


@pytest.fixture
def without_torch(tmp_path):
    """An environment without the packages that run_onnx.py must not need."""
    folder = tmp_path / "forbidden"
    folder.mkdir()
    for name in ("torch", "detectron2", "centripetalnet", "cv2"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} must not be needed')")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@needs_onnx
def test_run_onnx_detects_the_same_objects_as_the_model_without_torch(
    model, onnx_file, without_torch, tmp_path
):
    path, turned = tmp_path / "plain.png", tmp_path / "turned.png"
    picture = Image.fromarray(export.noise((150, 90))[0].permute(1, 2, 0).byte().numpy())
    picture.save(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotated by 90 degrees.
    picture.save(turned, exif=exif)

    done = subprocess.run(
        [sys.executable, TOOLS / "run_onnx.py", onnx_file, path, turned]
        + ["--output", tmp_path / "drawn", "--confidence-threshold", "0.2"],
        env=without_torch,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for file, size in ((path, (90, 150)), (turned, (150, 90))):
        image = torch.as_tensor(read_image(str(file), "RGB").copy()).permute(2, 0, 1)
        with torch.no_grad():
            expected = model([{"image": image}])[0]["instances"]
        expected = expected[expected.scores >= 0.2]
        actual = [line for line in lines if line["picture"] == str(file)]
        assert len(actual) == len(expected) > 0
        boxes = torch.tensor([line["box"] for line in actual])
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, atol=2e-2, rtol=0)
        scores = torch.tensor([line["score"] for line in actual])
        torch.testing.assert_close(scores, expected.scores, atol=2e-4, rtol=0)
        assert [line["class"] for line in actual] == ["abcde"[x] for x in expected.pred_classes]
        drawn = Image.open(tmp_path / "drawn" / file.name).convert("RGB")
        assert drawn.size == size
        assert (np.asarray(drawn) != image.permute(1, 2, 0).numpy()).any()


@needs_onnx
@pytest.mark.parametrize(
    "size, seen", [((200, 280), (50, 70)), ((41, 50), (57, 70))], ids=["shrunk", "enlarged"]
)
def test_run_onnx_resizes_as_the_predictor_does(untrained, tmp_path, size, seen, monkeypatch):
    output, picture = str(tmp_path / "model.onnx"), str(tmp_path / "picture.png")
    Image.fromarray(export.noise(size)[0].permute(1, 2, 0).byte().numpy()).save(picture)
    config_file = str(untrained / "config.yaml")
    opts = ["MODEL.WEIGHTS", str(untrained / "model.pth")]
    opts += ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "70"]
    compared = []

    def check_agreement(model, run, images):
        compared.extend(tuple(x.shape[1:]) for x in images)
        return agreement.check_agreement(model, run, images)

    monkeypatch.setattr(export, "check_agreement", check_agreement)
    options = ["--config-file", config_file, "--output", output, "--check", picture]
    run_export([*options, "--opts", *opts])

    found = run_onnx.Detector(output)(Image.open(picture))

    expected = load_predictor(config_file, None, opts=opts).detect(picture)
    assert compared == [seen]
    assert len(found.boxes) == len(expected) > 10
    np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor, atol=5e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-4)
    assert found.classes.tolist() == expected.pred_classes.tolist()


@needs_onnx
def test_run_onnx_rounds_sizes_as_detectron2_does():
    resized = run_onnx.resized
    generator = np.random.default_rng(0)
    for _ in range(300):
        height, width, short_edge, longest = generator.integers(20, 200, 4).tolist()

        picture = resized(Image.new("RGB", (width, height)), short_edge, longest)

        expected = ResizeShortestEdge.get_output_shape(height, width, short_edge, longest)
        assert picture.size == expected[::-1]


@needs_onnx
def test_run_onnx_names_unusable_files(onnx_file, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 20)).save(picture)
    (tmp_path / "text.onnx").write_text("no model")

    with pytest.raises(FileNotFoundError, match="there is no model .*none.onnx"):
        run_onnx.run([str(tmp_path / "none.onnx"), str(picture)])
    with pytest.raises(ValueError, match="text.onnx cannot be loaded by onnxruntime"):
        run_onnx.run([str(tmp_path / "text.onnx"), str(picture)])
    with pytest.raises(ValueError, match="would overwrite .*picture.png"):
        run_onnx.run([str(onnx_file), str(picture), "--output", str(tmp_path)])


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


def run_export(arguments):
    command.run(command.get_parser().parse_args(arguments))


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
