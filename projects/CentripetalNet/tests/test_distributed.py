"""Trainings and evaluations in several processes on the CPU."""

import json
import os
import signal
import time
from contextlib import suppress

import pytest
import torch
from conftest import SMALL, needs_timm, other_backbones
from detectron2.utils import comm
from few_images import FEW
from training import (
    ANYWHERE,
    TINY,
    TINY_MASK,
    arguments,
    free_port,
    kill,
    run,
    start,
    train_few,
    wait_for,
)

from centripetalnet.data import load_config
from centripetalnet.data.datasets import build_silhouettes
from centripetalnet.engine import Trainer, main, setup

TWO = ["--num-gpus", "2"]
NO_TEST = ["DATASETS.TEST", "()"]
MINUTES = ["--timeout", "0.3"]


# By default GPUs convolve float32 in TF32, with three decimal digits.
FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0"}


def run_few(datasets, output, *opts, **options):
    environment = {"DATASET": datasets / "silhouettes", **FLOAT32}
    result = run(*train_few(output, *opts, **options), **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    files = sorted(output.glob("rank?.pth"))
    return [torch.load(x, weights_only=True, map_location="cpu") for x in files]


def is_running(pid):
    with suppress(FileNotFoundError):
        # A zombie has ended.
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def pids_in(output):
    files = sorted(output.glob("rank?.pid"))
    return [int(x.read_text()) for x in files if x.read_text()]


FROZEN = ["MODEL.HOURGLASS.NORM", "FrozenBN", "MODEL.CENTRIPETALNET.NORM", "FrozenBN"]

needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="no two GPUs on this machine"
)
on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=needs_two_gpus)]
)

ONE_STEP = [
    *("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.AMP.ENABLED", "False", *NO_TEST),
    *("MODEL.CENTRIPETALNET.MASK.START_ITER", "0"),
]


EMBEDDINGS = ["MODEL.CENTRIPETALNET.MATCHING", "EmbeddingMatching"]
# They are sums over the images of a process. Two processes with half of them have the mean.
HALF_EMBEDDING_LOSSES = ["MODEL.CENTRIPETALNET.PULL_WEIGHT", "0.05"]
HALF_EMBEDDING_LOSSES += ["MODEL.CENTRIPETALNET.PUSH_WEIGHT", "0.05"]


def trained_alone(output, *opts, config_file=TINY):
    trainer = Trainer(setup(arguments(output, *opts, config_file=config_file)))
    trainer.train()
    return trainer.model


@on_each_device
@pytest.mark.parametrize(
    "config_file, more, of_one",
    [
        (TINY, [], []),
        (TINY_MASK, ["MODEL.CENTRIPETALNET.SHIFT_CONV", "deformable"], []),
        (TINY, EMBEDDINGS, HALF_EMBEDDING_LOSSES),
    ],
    ids=["boxes", "masks, deformable convolution", "embeddings"],
)
def test_two_processes_have_the_gradients_of_one_with_the_full_batch(
    config_file, more, of_one, device, datasets, tmp_path
):
    # The order of sums on a GPU changes from batch to batch.
    tolerance = {"cpu": 2e-5, "cuda": 1e-3}[device]
    opts = [*ONE_STEP, *FROZEN, *more, "MODEL.DEVICE", device]
    model = trained_alone(tmp_path / "alone", *opts, *of_one, config_file=config_file)

    first, second = run_few(datasets, tmp_path, *opts, flags=TWO, config_file=config_file)

    for name, parameter in model.named_parameters():
        gradient, alone = first["gradients"][f"module.{name}"], parameter.grad.cpu()
        assert torch.equal(gradient, second["gradients"][f"module.{name}"])
        assert (gradient - alone).norm() <= tolerance * alone.norm() + 1e-7, name


def tiny_with(backbone, *more):
    """Options that give the tiny detector another backbone."""
    return [x for k, v in SMALL[backbone].items() for x in (k.replace("__", "."), str(v))] + [*more]


@other_backbones
def test_processes_do_not_wait_for_weights_of_a_backbone_without_gradient(
    backbone, datasets, tmp_path
):
    opts = ["SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "4", *NO_TEST, *tiny_with(backbone)]
    if backbone == "timm":
        # Nothing reads the last stages of the network.
        opts += ["MODEL.FPN.IN_FEATURES", "['res2']", "MODEL.CENTRIPETALNET.IN_FEATURES", "[]"]

    first, second = run_few(datasets, tmp_path, *opts, flags=TWO)

    weights = {name: x for name, x in first["last"].items() if "running" not in name}
    assert all(torch.equal(x, second["last"][name]) for name, x in weights.items())
    changed = [name for name, x in weights.items() if not torch.equal(x, first["first"][name])]
    assert any("fpn_lateral2" in name for name in changed) and any(
        "bottom_up" in x for x in changed
    )


@needs_timm
def test_accumulated_gradients_of_two_processes_are_those_of_one_batch(datasets, tmp_path):
    frozen = ["MODEL.TIMM.NORM", "FrozenBN", "MODEL.CENTRIPETALNET.NORM", "FrozenBN"]
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.AMP.ENABLED", "False", *NO_TEST]
    opts += tiny_with("timm", *frozen)
    alone = trained_alone(tmp_path / "alone", *opts, "SOLVER.IMS_PER_BATCH", "4")

    halves = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.ACCUMULATE", "2"]
    first, second = run_few(datasets, tmp_path, *opts, *halves, flags=TWO)

    for name, parameter in alone.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = first["gradients"][f"module.{name}"]
        assert torch.equal(gradient, second["gradients"][f"module.{name}"])
        assert (gradient - parameter.grad).norm() <= 2e-5 * parameter.grad.norm() + 1e-7, name


@on_each_device
def test_synchronised_norms_have_the_statistics_of_the_full_batch(device, datasets, tmp_path):
    norm = {"cpu": "naiveSyncBN", "cuda": "SyncBN"}[device]
    opts = [*ONE_STEP, "MODEL.HOURGLASS.NORM", norm, "MODEL.CENTRIPETALNET.NORM", norm]
    opts += ["MODEL.DEVICE", device]
    model = trained_alone(tmp_path / "alone", *opts)

    first, _ = run_few(datasets, tmp_path, *opts, flags=TWO)

    compared = 0
    for name, value in model.state_dict().items():
        if "backbone.stem" in name and "running" in name:
            torch.testing.assert_close(
                first["last"][f"module.{name}"], value.cpu(), rtol=1e-3, atol=1e-4, msg=name
            )
            compared += 1
    assert compared > 2


def test_masks_are_trained_with_images_without_objects(tmp_path):
    build_silhouettes(str(tmp_path / "silhouettes"), FEW)
    file = tmp_path / "silhouettes" / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] % 3 == 0]
    file.write_text(json.dumps(content))
    opts = ["SOLVER.MAX_ITER", "12", "SOLVER.IMS_PER_BATCH", "2", *NO_TEST]
    opts += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"]
    opts += ["MODEL.CENTRIPETALNET.MASK.START_ITER", "4"]

    first, second = run_few(tmp_path, tmp_path, *opts, flags=TWO, config_file=TINY_MASK)

    # Norm statistics, too, since those of the main process are evaluated and saved.
    assert all(torch.equal(x, second["last"][name]) for name, x in first["last"].items())
    # Adam counts the mask head's steps from its first one.
    trainer = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]["_trainer"]
    steps = {int(x["step"]) for x in trainer["optimizer"]["state"].values()}
    assert steps == {12, 8}
    assert not any(
        torch.equal(x, first["first"][name]) for name, x in first["last"].items() if x.dim() == 4
    )


def test_evaluation_in_two_processes_gives_the_results_of_one(datasets, tmp_path):
    # With seven images one process has one more than the other.
    assert FEW.num_val % 2 == 1
    main(arguments(tmp_path, "SOLVER.MAX_ITER", "40", *NO_TEST))
    opts = ["MODEL.WEIGHTS", tmp_path / "model_final.pth", *ANYWHERE]

    for folder, flags in (("one", ()), ("two", TWO)):
        (tmp_path / folder).mkdir()
        run_few(datasets, tmp_path / folder, *opts, flags=[*flags, "--eval-only"])

    one, two = (json.loads((tmp_path / x / "results.json").read_text()) for x in ("one", "two"))
    assert one["bbox"]["AP"] > 0
    assert json.dumps(one) == json.dumps(two)
    # The process group was destroyed; otherwise PyTorch 2.14 aborts one of four such processes.
    ends = [(tmp_path / "two" / f"rank{rank}.end").read_text() for rank in (0, 1)]
    assert ends == ["initialized False"] * 2
    for folder in ("inference", "inference_TTA"):
        one, two = (
            json.loads((tmp_path / x / folder / "coco_instances_results.json").read_text())
            for x in ("one", "two")
        )
        assert sorted(map(str, one)) == sorted(map(str, two))


def start_endless(datasets, output, *flags, **environment):
    """Starts a long training in several processes with frequent checkpoints."""
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2", *NO_TEST]
    opts += ["SOLVER.CHECKPOINTS_KEPT", "1"]
    return start(
        *train_few(output, *opts, flags=[*flags, *MINUTES]),
        DATASET=datasets / "silhouettes",
        **environment,
    )


def has_checkpoint(output):
    return lambda: (output / "last_checkpoint").exists()


def test_if_one_process_is_killed_the_others_end_with_an_error(datasets, tmp_path):
    process = start_endless(datasets, tmp_path, *TWO)
    try:
        wait_for(has_checkpoint(tmp_path), process)
        pids = pids_in(tmp_path)

        os.kill(pids[1], signal.SIGKILL)

        assert process.wait(timeout=60) != 0
        assert len(pids) == 2 and not any(map(is_running, pids))
    finally:
        errors = kill(process)
    assert "SIGKILL" in errors or "Connection" in errors


def test_if_another_machine_is_lost_the_training_ends_with_an_error(datasets, tmp_path):
    address = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        start_endless(
            datasets, tmp_path, "--num-machines", "2", "--machine-rank", i, "--dist-url", address
        )
        for i in range(2)
    ]
    try:
        wait_for(has_checkpoint(tmp_path), machines[0])

        kill(machines[1])

        assert machines[0].wait(timeout=60) != 0
    finally:
        for machine in machines:
            kill(machine)


@pytest.mark.slow
def test_if_one_process_hangs_the_others_end_within_the_timeout(datasets, tmp_path):
    process = start_endless(datasets, tmp_path, *TWO, DISTURB="hang 1 5")
    try:
        wait_for((tmp_path / "disturbed").exists, process)
        began = time.monotonic()

        assert process.wait(timeout=60) != 0

        # MINUTES is 18 seconds.
        assert time.monotonic() - began > 10
        assert not any(map(is_running, pids_in(tmp_path)))
    finally:
        kill(process)


@pytest.mark.parametrize("num_workers, start", [(4, 300), (2, 600), (16, 75)])
def test_the_start_of_mask_training_is_scaled_to_the_number_of_workers(num_workers, start):
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 4, "MODEL.CENTRIPETALNET.MASK.START_ITER", 300]
    cfg = load_config(str(TINY_MASK), [*opts, "SOLVER.IMS_PER_BATCH", 16])
    cfg.freeze()

    scaled = Trainer.auto_scale_workers(cfg, num_workers)

    assert scaled.MODEL.CENTRIPETALNET.MASK.START_ITER == start
    assert scaled.SOLVER.MAX_ITER == cfg.SOLVER.MAX_ITER * start // 300
    assert cfg.MODEL.CENTRIPETALNET.MASK.START_ITER == 300 and scaled.is_frozen()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.CENTRIPETALNET.NORM", "SyncBN", "naiveSyncBN"),
        ("MODEL.TIMM.NORM", "SyncBN", "'BN' or 'FrozenBN'"),
        ("SOLVER.IMS_PER_BATCH", "3", "must be a multiple .* 2, got 3"),
    ],
)
def test_what_two_processes_on_the_cpu_cannot_have_is_refused(
    key, value, message, datasets, tmp_path, monkeypatch
):
    cfg = load_config(str(TINY), [key, value, "OUTPUT_DIR", str(tmp_path)])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)

    with pytest.raises(ValueError, match=f"{key}.*{message}"):
        Trainer(cfg)
