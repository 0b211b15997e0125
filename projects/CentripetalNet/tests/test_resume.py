"""Resumed trainings: after a kill they end with the weights of an uninterrupted one."""

import json
import re
import time

import numpy as np
import pytest
import torch
from training import arguments, free_port, kill, run, start, train_few, wait_for

from centripetalnet.engine import main

MAX_ITER = 40
OPTIONS = [
    *("SOLVER.MAX_ITER", str(MAX_ITER), "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD"),
    *("1", "SOLVER.CHECKPOINTS_KEPT", "3", "SOLVER.AMP.ENABLED", "False", "DATASETS.TEST", "()"),
    # Random numbers of every kind.
    *("INPUT.COLOR_DISTORTION.ENABLED", "True"),
]
# A pretrained kind of backbone, embeddings, averaged weights, and several batches a step.
OWN_DATA = [
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_resnet"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.CENTRIPETALNET.IN_FEATURES", "['p2']"),
    *("MODEL.CENTRIPETALNET.MATCHING", "EmbeddingMatching"),
    *("MODEL.EMA.ENABLED", "True", "SOLVER.ACCUMULATE", "2", "SOLVER.OPTIMIZER", "ADAMW"),
]


@pytest.fixture(scope="module", params=[(), OWN_DATA], ids=["hourglass", "own data"])
def uninterrupted(request, datasets, tmp_path_factory):
    """Options of a training, and the final checkpoint without an interruption."""
    output = tmp_path_factory.mktemp("uninterrupted")
    return request.param, finish(datasets, output, request.param)


def differences(first, second, path=""):
    """Paths of the values of two checkpoints that are not equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return [x for key in first for x in differences(first[key], second[key], f"{path}.{key}")]
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        return [x for a, b in zip(first, second) for x in differences(a, b, path)]
    return [] if first == second else [path]


def newest(output) -> int:
    """The iteration of the newest complete checkpoint, or -1."""
    return max((int(x.stem[-7:]) for x in output.glob("model_0*.pth")), default=-1)


def kill_after(datasets, output, checkpoints, seconds, workers, opts=(), flags=()):
    """Resumes a training, and kills it some seconds after it has written some checkpoints."""
    until = newest(output) + checkpoints
    command = train_few(
        output, *OPTIONS, *opts, "DATALOADER.NUM_WORKERS", workers, flags=["--resume", *flags]
    )
    process = start(*command, DATASET=datasets / "silhouettes")
    wait_for(lambda: newest(output) >= until, process)
    time.sleep(seconds)
    assert process.poll() is None
    kill(process)


def kill_while_saving(datasets, output, name, opts=()):
    process = start(
        *train_few(output, *OPTIONS, *opts, flags=["--resume"]),
        DATASET=datasets / "silhouettes",
        DISTURB=f"stall_while_saving {name}",
    )
    wait_for((output / "disturbed").exists, process)
    kill(process)
    (output / "disturbed").unlink()


def finish(datasets, output, opts=(), flags=()):
    command = train_few(output, *OPTIONS, *opts, flags=["--resume", *flags])
    result = run(*command, DATASET=datasets / "silhouettes")
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(output / "model_final.pth", weights_only=True)


def test_a_killed_and_resumed_training_ends_with_the_same_bits(datasets, uninterrupted, tmp_path):
    opts, expected = uninterrupted
    kill_after(datasets, tmp_path, checkpoints=6, seconds=0.05, workers=2, opts=opts)
    kill_while_saving(datasets, tmp_path, "model_0000030", opts)
    assert (tmp_path / "model_0000030.pth.part").exists()
    assert not (tmp_path / "model_0000030.pth").exists()

    final = finish(datasets, tmp_path, opts)

    assert differences(expected, final) == []
    assert list(tmp_path.glob("*.part")) == []
    assert len(list(tmp_path.glob("model_0*.pth"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("uninterrupted", [OWN_DATA], indirect=True, ids=["own data"])
def test_twenty_kills_change_nothing(datasets, uninterrupted, tmp_path):
    opts, expected = uninterrupted
    random = np.random.default_rng(0)
    for _ in range(4):
        # During imports, building the model, and loading the checkpoint.
        kill_after(datasets, tmp_path, 0, random.uniform(0, 4), workers=1, opts=opts)
    for workers in random.integers(0, 3, 12):
        kill_after(datasets, tmp_path, 1, random.uniform(0, 0.06), workers, opts)
    for name in ("model_0000038", "model_0000038", "model_0000039", "model_final"):
        kill_while_saving(datasets, tmp_path, name, opts)

    final = finish(datasets, tmp_path, opts)

    assert differences(expected, final) == []


@pytest.mark.slow
@pytest.mark.parametrize("opts", [(), OWN_DATA], ids=["hourglass", "own data"])
def test_a_killed_training_in_two_processes_ends_with_the_same_bits(datasets, tmp_path, opts):
    two = ["--num-gpus", "2"]
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
    for _ in range(2):
        kill_after(datasets, tmp_path / "killed", 8, 0.05, workers=1, opts=opts, flags=two)

    killed, whole = (finish(datasets, tmp_path / x, opts, two) for x in ("killed", "whole"))

    assert differences(whole, killed) == []


def test_after_a_restart_by_torchrun_a_training_ends_with_the_same_bits(datasets, tmp_path):
    opts = [*OPTIONS, "SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2"]
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
    whole = finish(datasets, tmp_path / "whole", opts, ["--num-gpus", "2"])

    result = run(
        *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"),
        *("--master-port", free_port(), *train_few(tmp_path / "killed", *opts)),
        DATASET=datasets / "silhouettes",
        DISTURB="kill 1 5",
    )

    assert result.returncode == 0, result.stderr[-3000:]
    for file in ("log.txt", "log.txt.rank1"):
        log = (tmp_path / "killed" / file).read_text()
        assert re.findall(r"Starting training from iteration (\d+)", log) == ["0", "4"]
    killed = torch.load(tmp_path / "killed" / "model_final.pth", weights_only=True)
    assert differences(whole, killed) == []


def test_training_resumes_from_its_last_checkpoint(datasets, tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2", "DATASETS.TEST", "()"]
    main(arguments(tmp_path, "SOLVER.MAX_ITER", "2", *opts))

    args = arguments(tmp_path, "SOLVER.MAX_ITER", "4", *opts)
    args.resume = True
    main(args)

    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines] == [1, 3]


def test_a_resumed_training_uses_the_learning_rate_of_the_command_line(datasets, tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()", "SOLVER.WARMUP_ITERS", "0"]
    opts += ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
    main(arguments(tmp_path, "SOLVER.MAX_ITER", "2", *opts))

    changed = ["SOLVER.BASE_LR", "0.0005", "SOLVER.WEIGHT_DECAY", "0.01"]
    main(arguments(tmp_path, "SOLVER.MAX_ITER", "4", *opts, *changed, resume=True))

    state = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]["_trainer"]
    group = state["optimizer"]["param_groups"][0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.0005, 0.0005, 0.01)
    log = (tmp_path / "log.txt").read_text()
    assert "lr was 0.003 in the checkpoint and is now 0.0005" in log
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [x["lr"] for x in lines] == [0.003, 0.0005]


def test_a_training_in_a_remote_folder_is_resumed(datasets, remote):
    output, folder = "test-store://training", remote / "training"
    opts = ["SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]
    main(arguments(output, "SOLVER.MAX_ITER", "2", *opts))

    main(arguments(output, "SOLVER.MAX_ITER", "4", *opts, resume=True))

    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 3
    lines = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines] == [1, 3]
    assert (folder / "training.png").exists()


def test_a_checkpoint_that_does_not_fit_the_config_is_not_resumed(datasets, tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]
    main(arguments(tmp_path, "SOLVER.MAX_ITER", "2", *opts))

    for change, message in (
        (["SOLVER.OPTIMIZER", "SGD"], "another optimizer.*SOLVER.OPTIMIZER"),
        (["MODEL.BACKBONE.FREEZE_AT", "1"], "other groups of parameters.*FREEZE_AT"),
        (["SOLVER.MAX_ITER", "1"], "iteration 2, but SOLVER.MAX_ITER is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            main(arguments(tmp_path, "SOLVER.MAX_ITER", "4", *opts, *change, resume=True))


def test_the_seed_of_a_checkpoint_is_kept_and_logged(datasets, tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]
    main(arguments(tmp_path, "SOLVER.MAX_ITER", "2", "SEED", "5", *opts))

    main(arguments(tmp_path, "SOLVER.MAX_ITER", "4", "SEED", "6", *opts, resume=True))

    assert "SEED stays 5, as in the checkpoint" in (tmp_path / "log.txt").read_text()


def test_a_diverged_training_resumes_from_its_last_checkpoint_with_a_lower_rate(datasets, tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()", "SOLVER.WARMUP_ITERS", "0"]
    opts += ["SOLVER.OPTIMIZER", "SGD"]
    opts += ["SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    main(arguments(tmp_path, *opts, "SOLVER.MAX_ITER", "2"))

    # The training diverges at this learning rate.
    opts += ["SOLVER.MAX_ITER", "12"]
    with pytest.raises(FloatingPointError, match="loss_heatmap.*/train/.*--resume SOLVER.BASE_LR"):
        main(arguments(tmp_path, *opts, "SOLVER.BASE_LR", "1e20", resume=True))
    last = (tmp_path / "last_checkpoint").read_text()
    main(arguments(tmp_path, *opts, "SOLVER.BASE_LR", "0.0001", resume=True))

    assert last != "model_diverged.pth" and (tmp_path / "model_diverged.pth").exists()
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 11
