"""Untrusted files execute no code and write nothing outside the output folder."""

import json
import os
import shutil

import pytest
import torch
from conftest import PROJECT, golden_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from torch import nn
from training import ANYWHERE, arguments, run

from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.checkpoint.conversion import convert_to_ours
from centripetalnet.data import load_config
from centripetalnet.engine import main


class MakesFolder:
    """Unpickling it creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    """A path that only exists if code was executed."""
    path = tmp_path / "code_was_run"
    yield path
    assert not path.exists()


def test_the_trap_works(tmp_path):
    torch.save(MakesFolder(tmp_path / "made"), tmp_path / "file.pth")

    torch.load(tmp_path / "file.pth", weights_only=False)

    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_run_no_code(legacy, datasets, tmp_path, trap):
    output = tmp_path / "output"
    output.mkdir()
    content = {"model": {"weight": torch.zeros(1)}, "trainer": MakesFolder(trap), "iteration": 3}
    path = output / "model_0000003.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    (output / "last_checkpoint").write_text(path.name)

    for call in (
        lambda: main(arguments(output, "MODEL.WEIGHTS", path, eval_only=True)),
        lambda: main(arguments(output, "MODEL.WEIGHTS", path)),
        lambda: main(arguments(output, resume=True)),
    ):
        with pytest.raises(ValueError, match="loaded safely|can be read"):
            call()


def test_the_converter_runs_no_code(tmp_path, trap):
    torch.save({"state_dict": MakesFolder(trap)}, tmp_path / "source.pth")

    tool = PROJECT / "tools" / "convert_checkpoint.py"
    result = run(tool, tmp_path / "source.pth", tmp_path / "converted.pth")

    assert result.returncode != 0 and "loaded safely" in result.stderr
    assert not (tmp_path / "converted.pth").exists()


class Program(nn.Module):
    """Its TorchScript archive writes a file when it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), state[0])


def test_the_torchscript_trap_works(tmp_path):
    torch.jit.script(Program(str(tmp_path / "made"))).save(str(tmp_path / "file.pth"))

    torch.jit.load(str(tmp_path / "file.pth"))

    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("reader", ["checkpointer", "converter"])
def test_torchscript_archives_run_no_code(reader, tmp_path, trap):
    path = str(tmp_path / "file.pth")
    torch.jit.script(Program(str(trap))).save(path)

    with pytest.raises(ValueError, match=r"file\.pth .*TorchScript archive"):
        if reader == "checkpointer":
            CentripetalNetCheckpointer(nn.Linear(1, 1)).load(path)
        else:
            convert_to_ours(path, golden_config())


@pytest.mark.parametrize("depth", ["config", "base"])
def test_config_files_run_no_code(depth, tmp_path, trap):
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{trap}']\n")
    config = tmp_path / "config.yaml"
    config.write_text("_BASE_: evil.yaml\n")

    with pytest.raises(ValueError, match="python/object"):
        load_config(str(evil if depth == "config" else config))


def contents(folder, left_out):
    """Size and modification time of each file in a folder."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and left_out not in path.parents
    }


def test_annotation_files_write_nothing_outside_the_output_folder(datasets, tmp_path):
    shutil.copytree(datasets / "silhouettes", tmp_path / "data")
    (tmp_path / "secret").mkdir()
    file = tmp_path / "data" / "annotations" / "train.json"
    content = json.loads(file.read_text())
    for i, image in enumerate(content["images"]):
        shutil.copy(tmp_path / "data" / "train" / image["file_name"], tmp_path / "secret" / f"{i}")
        image["file_name"] = f"../../secret/{i}" if i % 2 else str(tmp_path / "secret" / f"{i}")
    for i, category in enumerate(content["categories"]):
        category["name"] = ("../" * i) + str(tmp_path / f"written{i}.json")
    file.write_text(json.dumps(content))
    register_coco_instances("strange", {}, str(file), str(tmp_path / "data" / "train"))
    output = tmp_path / "output"
    before = contents(tmp_path, output)

    names = ["DATASETS.TRAIN", "('strange',)", "DATASETS.TEST", "('strange',)"]
    try:
        main(arguments(output, *names, "SOLVER.MAX_ITER", "4", "VIS_PERIOD", "2", *ANYWHERE))
    finally:
        DatasetCatalog.remove("strange")
        MetadataCatalog.remove("strange")

    assert contents(tmp_path, output) == before
    assert (output / "inference" / "coco_instances_results.json").exists()
