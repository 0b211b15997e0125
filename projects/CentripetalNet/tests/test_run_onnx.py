"""run_onnx.py detects as the model does, with numpy, Pillow and onnxruntime only."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PROJECT
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from exporting import needs_onnx, run_export
from PIL import Image

from centripetalnet import export, load_predictor
from centripetalnet.commands import run_onnx
from centripetalnet.export import agreement
from centripetalnet.layers import batched_soft_nms

TOOLS = PROJECT / "tools"


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("sigma", [0.5, 1e-60])
@needs_onnx
def test_soft_nms_in_numpy_agrees_with_the_project(method, sigma):
    generator = np.random.default_rng(0)
    for count in (0, 1, 40, 1000):
        corner = generator.uniform(0, 200, (count, 2))
        # Some boxes have no area.
        size = np.maximum(generator.uniform(-10, 100, (count, 2)), 0)
        boxes = np.concatenate((corner, corner + size), axis=1).astype(np.float32)
        scores = generator.uniform(-0.1, 1, count).astype(np.float32)
        classes = generator.integers(0, 3, count)
        options = {"method": method, "sigma": sigma, "iou_threshold": 0.3, "min_score": 0.02}

        kept, lowered = run_onnx.soft_nms(boxes, scores, classes, max_detections=100, **options)

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
    golden_detector, onnx_file, without_torch, tmp_path
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
            expected = golden_detector([{"image": image}])[0]["instances"]
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
    generator = np.random.default_rng(0)
    for _ in range(300):
        height, width, short_edge, longest = generator.integers(20, 200, 4).tolist()

        picture = run_onnx.resized(Image.new("RGB", (width, height)), short_edge, longest)

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
