"""Processes and exit status of the commands."""

import sys

import pytest
import torch
from conftest import PROJECT
from detectron2.utils import comm
from training import run

from centripetalnet.commands import train
from centripetalnet.engine.launch import argument_parser, launch_processes

FEW_STEPS = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"),
    *("DATALOADER.NUM_WORKERS", "1"),
]
# Runs at the start of each Python process with its folder on the path.
A_GPU = """
import os, torch
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != ""
torch.cuda.device_count = lambda: 2 if torch.cuda.is_available() else 0
"""


def train_net(*args, **environment):
    return run(PROJECT / "train_net.py", *args, **environment)


def train_on(folder, annotations, num_classes):
    """Options of a short training on a folder of images."""
    dataset = [["mine", str(annotations), str(folder)]]
    return [
        *FEW_STEPS,
        *("DATASETS.COCO_FORMAT", str(dataset), "DATASETS.TRAIN", "('mine',)"),
        *("MODEL.CENTRIPETALNET.NUM_CLASSES", num_classes),
    ]


def launch(*args):
    launch_processes(lambda args: None, argument_parser().parse_args(args))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_without_a_gpu_a_config_for_gpus_is_refused_with_the_key():
    result = train_net("--config-file", "centripetal_hg104", "--num-gpus", "8")

    assert result.returncode == 1
    assert "MODEL.DEVICE is 'cuda'" in result.stderr and "MODEL.DEVICE cpu" in result.stderr
    assert "Traceback" not in result.stderr


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    with pytest.raises(ValueError, match="--nproc-per-node 8: this machine has 4 GPUs"):
        launch("--config-file", "centripetal_hg104", "--num-gpus", "8")


def torchrun(monkeypatch, nproc=1, nnodes=1, restarts=0, max_restarts=0):
    """The environment that torchrun gives to its first process."""
    environment = {
        **{"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": nproc},
        **{"GROUP_WORLD_SIZE": nnodes, "WORLD_SIZE": nproc * nnodes},
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": 29500, "TORCHELASTIC_RUN_ID": "none"},
        **{"TORCHELASTIC_RESTART_COUNT": restarts, "TORCHELASTIC_MAX_RESTARTS": max_restarts},
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    "option, given, is_",
    [
        ("--num-gpus", "1", "2"),
        ("--num-machines", "1", "3"),
        ("--machine-rank", "1", "0"),
        ("--dist-url", "tcp://10.0.0.1:29500", "tcp://localhost:29500"),
    ],
)
def test_options_that_contradict_torchrun_are_refused(option, given, is_, monkeypatch):
    torchrun(monkeypatch, nproc=2, nnodes=3)

    with pytest.raises(ValueError, match=f"{option} {given}: under torchrun it is {is_}"):
        launch("--config-file", "centripetal_tiny", option, given)


def test_restarts_on_several_machines_that_could_not_connect_are_refused(monkeypatch):
    torchrun(monkeypatch, nnodes=2, max_restarts=3)

    with pytest.raises(ValueError, match="--max-restarts 3 .* TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        launch("--config-file", "centripetal_tiny")


@pytest.mark.parametrize(
    "restarts, elsewhere, max_restarts, flags, resumes, is_kept",
    [
        (0, 0, 0, [], False, True),
        # A restart would resume an earlier training in this folder.
        (0, 0, 1, [], False, False),
        (0, 0, 1, ["--resume"], True, True),
        (1, 0, 1, [], True, True),
        # Another machine counted the restart.
        (0, 1, 1, [], True, True),
        # It would evaluate the last checkpoint instead of MODEL.WEIGHTS.
        (1, 0, 1, ["--eval-only"], False, True),
    ],
)
def test_a_training_resumes_after_a_restart_by_torchrun(
    restarts, elsewhere, max_restarts, flags, resumes, is_kept, monkeypatch, tmp_path
):
    torchrun(monkeypatch, restarts=restarts, max_restarts=max_restarts)
    monkeypatch.setattr(comm, "all_gather", lambda x: [x, elsewhere])
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    seen = []

    launch_processes(
        seen.append,
        argument_parser().parse_args(
            # The same as torchrun's.
            ["--config-file", "centripetal_tiny", "--num-gpus", "1", "--num-machines", "1"]
            + [*flags, "OUTPUT_DIR", str(tmp_path)]
        ),
    )

    assert [x.resume for x in seen] == [resumes]
    assert (tmp_path / "last_checkpoint").exists() == is_kept


def test_two_processes_train_on_the_cpu_of_a_machine_with_gpus(datasets, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(A_GPU)
    images = datasets / "silhouettes"

    result = train_net(
        *("--config-file", "centripetal_tiny", "--num-gpus", "2", "--dist-url", "auto"),
        *train_on(images / "train", images / "annotations" / "train.json", num_classes="5"),
        *("OUTPUT_DIR", tmp_path / "output"),
        PYTHONPATH=":".join([str(tmp_path), *sys.path]),
    )

    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "output" / "model_final.pth").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_image_that_cannot_be_read_is_an_error_in_one_line(datasets, tmp_path, processes):
    image = tmp_path / "cut.png"
    image.write_bytes(b"")
    (tmp_path / "train.json").write_text(
        f"""{{"images": [{{"id": 1, "file_name": "{image.name}", "width": 64, "height": 64}}],
        "annotations": [{{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 9, 9],
        "area": 81, "iscrowd": 0}}], "categories": [{{"id": 1, "name": "a"}}]}}"""
    )

    result = train_net(
        *("--config-file", "centripetal_tiny", "--num-gpus", processes, "--dist-url", "auto"),
        *train_on(tmp_path, tmp_path / "train.json", num_classes="1"),
        *("OUTPUT_DIR", tmp_path / "output"),
    )

    assert result.returncode == 1
    assert f"error: cannot read the image {image}" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert f"cannot read the image {image}" in (tmp_path / "output" / "log.txt").read_text()


def test_a_programming_error_keeps_its_traceback(monkeypatch):
    def fault(args):
        return {}["missing"]

    monkeypatch.setattr(train.engine, "main", fault)

    with pytest.raises(KeyError, match="missing"):
        train.main(["--config-file", "centripetal_tiny"])
