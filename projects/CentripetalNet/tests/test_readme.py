"""The Python examples of the documentation run."""

import json
import re
import textwrap

import cv2
import matplotlib
import numpy as np
import pytest
from conftest import PROJECT

TUTORIAL = PROJECT.parents[1] / "docs" / "tutorial.ipynb"


def block_after(words):
    """The first indented block of README.md after these words."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    after = text[text.index(words) + len(words) :]
    return textwrap.dedent(re.search(r"\n\n((?:(?: {4}.*)?\n)+)", after).group(1))


def with_paths(code, paths):
    for name, path in paths.items():
        assert code.count(f'"{name}"') == 1
        code = code.replace(f'"{name}"', repr(str(path)))
    return code


def test_the_example_from_python_prints_the_detections(untrained, tmp_path, capsys):
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    example = block_after("From Python:")
    paths = {
        "centripetal_mask_lite0": untrained / "config.yaml",
        "model.pth": untrained / "model.pth",
        "picture.png": tmp_path / "picture.png",
    }

    exec(compile(with_paths(example, paths), "README.md", "exec"), {})

    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(re.fullmatch(r"[a-z]+ [01]\.\d\d \[(\d.*, ){3}\d.*\]", line) for line in lines)


@pytest.mark.skipif(not TUTORIAL.exists(), reason="the project is outside its repository")
def test_the_tutorial_runs_from_start_to_end(untrained, datasets, capsys):
    cells = [x for x in json.loads(TUTORIAL.read_text())["cells"] if x["cell_type"] == "code"]
    paths = {
        "centripetal_mask_lite0": untrained / "config.yaml",
        "../output/demo/training/model_final.pth": untrained / "model.pth",
        "../output/datasets/silhouettes/val/000016.png": datasets / "silhouettes/val/000001.png",
    }
    matplotlib.use("Agg")

    exec(
        compile(
            with_paths("\n".join("".join(x["source"]) for x in cells), paths), "tutorial", "exec"
        ),
        {},
    )

    printed = capsys.readouterr().out
    assert "ACCEPTED" in printed and "Boxes(" in printed
    # It is committed with its results.
    assert all(x["outputs"] for x in cells)
