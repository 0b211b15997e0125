"""The Python example of the README runs."""

import re
import textwrap

import cv2
import numpy as np
from conftest import PROJECT


def block_after(words):
    """The first indented block of README.md after these words."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    after = text[text.index(words) + len(words) :]
    return textwrap.dedent(re.search(r"\n\n((?:(?: {4}.*)?\n)+)", after).group(1))


def test_the_example_from_python_prints_the_detections(untrained, tmp_path, capsys):
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    example = block_after("From Python:")
    paths = {
        "centripetal_mask_tiny": untrained / "config.yaml",
        "model.pth": untrained / "model.pth",
        "picture.png": tmp_path / "picture.png",
    }
    for name, path in paths.items():
        assert example.count(f'"{name}"') == 1
        example = example.replace(f'"{name}"', repr(str(path)))

    exec(compile(example, "README.md", "exec"), {})

    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(re.fullmatch(r"[a-z]+ [01]\.\d\d \[(\d.*, ){3}\d.*\]", line) for line in lines)
