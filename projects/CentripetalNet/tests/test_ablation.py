"""The comparison of variants, with two tiny ones."""

import json

import pytest
from few_images import FEW

from centripetalnet.commands import ablation
from centripetalnet.data.datasets import build_silhouettes

pytestmark = pytest.mark.slow


def test_variants_are_trained_compared_and_not_trained_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    build_silhouettes(str(tmp_path / "datasets" / "silhouettes"), FEW)
    output = tmp_path / "ablation"
    command = ["--output", str(output), "--config-file", "centripetal_tiny", "--seeds", "2"]
    command += ["--iterations", "3", "--timed-steps", "1"]
    files = ["DATASETS.COCO_FORMAT", coco_format(tmp_path / "datasets" / "silhouettes")]
    opts = ["--opts", *files, "DATASETS.TRAIN", "('few_train',)", "DATASETS.TEST", "('few_val',)"]

    assert ablation.main([*command, "--variants", "embedding", "cross-star", *opts]) == 0
    first = capfd.readouterr().out
    assert ablation.main([*command, "--variants", "weighted", "cross-star", *opts]) == 0
    second = capfd.readouterr().out

    # Two variants with two seeds, then only evaluations.
    assert first.count("commands.train --resume") == 4
    assert "commands.train" not in second
    results = json.loads((output / "ablation.json").read_text())
    assert set(results) == {"cross-star", "weighted"}
    assert all(0 <= run["AP"] <= 100 for row in results.values() for run in row["runs"])
    assert results["cross-star"]["seconds"] > 0 and "seconds" not in results["weighted"]
    table = (output / "ablation.md").read_text()
    assert table.count("\n") == 4 and "cross-star convolution (CentripetalNet)" in table
    assert (output / "ablation.png").read_bytes().startswith(b"\x89PNG")
    command[command.index("3")] = "4"
    assert ablation.main([*command, "--variants", "cross-star", *opts]) == 1
    assert "is the result of other options" in capfd.readouterr().err


def coco_format(folder):
    names = {"few_train": "train", "few_val": "val"}
    return str(
        [[name, f"{folder}/annotations/{x}.json", f"{folder}/{x}"] for name, x in names.items()]
    )
