"""The drawing tools and analyze_model.py from the command line."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import PROJECT
from detectron2.structures import Boxes
from few_images import FEW
from training import ANYWHERE, ENVIRONMENT, TINY, TINY_MASK, run

from centripetalnet import load_predictor
from centripetalnet.commands import analyze, explain, visualize_data
from centripetalnet.data.datasets import register_silhouettes
from centripetalnet.explain import explanation_figure

TOOLS = PROJECT / "tools"


def call(command, *args):
    """Calls a command in this process."""
    assert command.main([str(x) for x in args]) == 0


def test_explain_draws_a_sheet_for_an_image(datasets, untrained, tmp_path):
    picture = datasets / "silhouettes" / "val" / "000001.png"

    result = run(
        *(TOOLS / "explain.py", "--config-file", untrained / "config.yaml", "--input", picture),
        *("--output", tmp_path / "sheets", "--near", "50,40", "--min-score", "0.1"),
        *("--opts", "MODEL.WEIGHTS", untrained / "model.pth"),
    )

    assert result.returncode == 0, result.stderr
    assert cv2.imread(str(tmp_path / "sheets" / "000001.explain.png")).shape[1] > 1500


def test_explain_shows_a_resized_image_in_original_pixels(untrained, tmp_path, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (160, 240, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    opts = ["MODEL.WEIGHTS", str(untrained / "model.pth"), "INPUT.MIN_SIZE_TEST", "40"]
    shown = []

    def figure(*args, **options):
        shown.extend(args)
        return explanation_figure(*args, **options)

    monkeypatch.setattr("centripetalnet.commands.explain.explanation_figure", figure)
    call(
        *(explain, "--config-file", untrained / "config.yaml", "--near", "200,120"),
        *("--input", tmp_path / "picture.png", "--output", tmp_path, "--opts", *opts),
    )

    image, explanation, pair = shown[:3]
    assert image.shape == (160, 240, 3)
    expected = load_predictor(untrained / "config.yaml", None, opts=opts).detect(picture)
    best = tuple(explanation.detections[0].tolist())
    box = Boxes(explanation.boxes[best][None].clone())
    box.clip((160, 240))
    torch.testing.assert_close(box.tensor, expected.pred_boxes.tensor[:1])
    x0, y0, x1, y1 = explanation.regions[pair].tolist()
    assert x0 <= 200 <= x1 and y0 <= 120 <= y1


@pytest.mark.parametrize(
    "args, message",
    [
        (("--near", "50"), "--near 50: expected two numbers, such as 120,80"),
        (("--pair", "unicorn:1,2"), "there is no class 'unicorn'; known are 0 to 4"),
        (("--pair", "1,2"), "there is no class ''; known are 0 to 4"),
        (("--min-score", "7"), "--min-score is 7.0; expected a number from 0 to 1"),
    ],
)
def test_explain_names_an_invalid_argument(tmp_path, capsys, args, message):
    (tmp_path / "picture.png").touch()
    options = ["--config-file", TINY, "--input", tmp_path / "picture.png", "--output", tmp_path]

    assert explain.main([str(x) for x in (*options, *args)]) == 1

    assert message in capsys.readouterr().err


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_visualize_data_draws_the_requested_number_of_images(datasets, tmp_path, source):
    # In this process, where a dataset of a few images is registered.
    args = ["--source", source, "--config-file", TINY_MASK, "--output-dir", tmp_path / "drawn"]

    call(visualize_data, *args, "--num-images", 2, "OUTPUT_DIR", tmp_path / "output")

    files = sorted((tmp_path / "drawn").iterdir())
    assert len(files) == 2
    assert all(cv2.imread(str(x)) is not None for x in files)


def test_visualize_data_checks_the_dataset_first(datasets, tmp_path, capsys):
    def error(*opts):
        options = ["--source", "annotation", "--config-file", TINY_MASK, "--output-dir", tmp_path]
        assert visualize_data.main([str(x) for x in (*options, *opts)]) == 1
        return capsys.readouterr().err

    problem = error("MODEL.CENTRIPETALNET.NUM_CLASSES", 7)
    assert re.match("error: .*NUM_CLASSES is 7, but the dataset .* has 5 classes", problem)
    assert "no dataset 'nothing' is registered" in error("DATASETS.TRAIN", "('nothing',)")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unbuilt_dataset(datasets, tmp_path):
    """The dataset of a few images, registered but not built."""
    register_silhouettes(str(tmp_path / "silhouettes"), FEW)
    yield
    register_silhouettes(str(datasets / "silhouettes"), FEW)


@pytest.mark.usefixtures("unbuilt_dataset")
def test_visualize_data_builds_a_dataset_that_is_built_on_first_use(tmp_path):
    args = ["--source", "dataloader", "--config-file", TINY, "--output-dir", tmp_path / "drawn"]

    call(visualize_data, *args, "--num-images", 1, "OUTPUT_DIR", tmp_path / "output")

    assert len(list((tmp_path / "drawn").iterdir())) == 1


def test_plot_training_names_the_file_that_is_missing(tmp_path):
    result = run(TOOLS / "plot_training.py", tmp_path)

    assert result.returncode == 1
    assert "metrics.json" in result.stderr and "Traceback" not in result.stderr


def test_analyze_model_prints_a_table_of_the_modules(capsys):
    # The config's device does not matter.
    call(analyze, "--config-file", TINY, "--size", 63, 63, "MODEL.DEVICE", "cuda")

    printed = capsys.readouterr().out
    assert "on a canvas of 127 x 127" in printed and "| model.heads.0.tl.pooling " in printed
    assert "Not counted as FLOPs: aten::" in printed


@pytest.mark.slow
def test_the_demo_makes_one_dataset_for_training_and_evaluation(tmp_path):
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "DETECTRON2_DATASETS"}
    few = ["SOLVER.MAX_ITER", "2", "TEST.AUG.ENABLED", "False", *ANYWHERE]

    result = subprocess.run(
        [sys.executable, TOOLS / "run_demo.py", "--output", "out/demo", "--num-images", "2", *few],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.rglob("spec.json")) == [
        tmp_path / "out" / "datasets" / "silhouettes" / "spec.json"
    ]
    assert (tmp_path / "out" / "demo" / "metrics.json").is_file()
