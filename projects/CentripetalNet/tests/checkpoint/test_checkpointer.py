import os
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks, launch
from detectron2.layers import get_norm
from detectron2.utils import comm
from torch import nn

from centripetalnet.checkpoint import CentripetalNetCheckpointer


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_a_missing_file_is_named(model):
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS.*nothing\.pth"):
        CentripetalNetCheckpointer(model).load("nothing.pth")


def test_weights_that_do_not_fit_are_listed_by_kind(model, tmp_path):
    weights = model.state_dict()
    weights["0.weight"] = torch.zeros(5, 2)
    weights["other"] = torch.zeros(1)
    del weights["1.bias"]
    torch.save({"model": weights}, tmp_path / "model.pth")

    with pytest.raises(ValueError) as error:
        CentripetalNetCheckpointer(model).load(str(tmp_path / "model.pth"))

    message = str(error.value)
    assert "not in the checkpoint (1):\n  1.bias" in message
    assert "0.weight (checkpoint (5, 2), model (3, 2))" in message
    assert "not in the model (1):\n  other" in message


def test_a_training_may_start_from_weights_that_fit_in_part(model, tmp_path):
    weights = {"0.weight": torch.ones(3, 2), "1.weight": torch.zeros(9, 9)}
    torch.save({"model": weights}, tmp_path / "model.pth")

    CentripetalNetCheckpointer(model, strict=False).load(str(tmp_path / "model.pth"))

    assert model[0].weight.eq(1).all()


def test_weights_with_a_batch_norm_fit_a_frozen_one(tmp_path):
    CentripetalNetCheckpointer(get_norm("BN", 4), str(tmp_path)).save("model")

    CentripetalNetCheckpointer(get_norm("FrozenBN", 4)).load(str(tmp_path / "model.pth"))


def test_a_training_resumes_only_from_weights_that_match_completely(model, tmp_path):
    CentripetalNetCheckpointer(model, str(tmp_path)).save("model")
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 7))

    with pytest.raises(ValueError, match="1.weight"):
        CentripetalNetCheckpointer(other, str(tmp_path), strict=False).resume_or_load("")


def test_weights_may_be_under_state_dict(model, tmp_path):
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")

    CentripetalNetCheckpointer(model).load(str(tmp_path / "model.pth"))


def test_a_training_does_not_start_from_weights_none_of_which_fits(model, tmp_path):
    torch.save({"model": {"other": torch.zeros(1)}}, tmp_path / "model.pth")

    with pytest.raises(ValueError, match="does not fit"):
        CentripetalNetCheckpointer(model, strict=False).load(str(tmp_path / "model.pth"))


def test_a_pickle_that_would_run_code_is_refused(model, tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": print, "__author__": "x"}))

    with pytest.raises(ValueError, match=r"model\.pkl .*imports builtins\.print"):
        CentripetalNetCheckpointer(model).load(str(tmp_path / "model.pkl"))


@pytest.mark.parametrize("content", [{"model": {}}, {"model": None}, {}])
def test_a_checkpoint_without_weights_is_named(model, tmp_path, content):
    torch.save(content, tmp_path / "model.pth")

    with pytest.raises(ValueError, match="holds no weights"):
        CentripetalNetCheckpointer(model).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.ones(3, 2, dtype=torch.complex64), r"'0\.weight' are torch.complex64"),
        (torch.eye(3, 2).to_sparse(), r"model\.pth .* imports .*_rebuild_sparse_tensor"),
        (torch.ones(3, 2, device="meta"), r"model\.pth .* imports .*_rebuild_meta_tensor"),
        ([[1.0]], r"'0\.weight' in the weights is a list"),
    ],
)
def test_weights_that_are_not_plain_tensors_are_named(model, tmp_path, value, message):
    torch.save({"model": {**model.state_dict(), "0.weight": value}}, tmp_path / "model.pth")

    with pytest.raises(ValueError, match=message):
        CentripetalNetCheckpointer(model).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("name", [3, None, ("a", 1)])
def test_weights_whose_name_is_no_string_are_refused(model, tmp_path, name):
    torch.save({"model": {**model.state_dict(), name: torch.ones(1)}}, tmp_path / "model.pth")

    with pytest.raises(ValueError, match="has the name .* expected a string"):
        CentripetalNetCheckpointer(model).load(str(tmp_path / "model.pth"))


def test_a_file_of_torch_save_cannot_have_its_weights_matched_by_similar_names(tmp_path):
    weights = nn.Linear(2, 3).state_dict()
    content = {"model": weights, "matching_heuristics": True, "__author__": "torchvision"}
    torch.save(content, tmp_path / "model.pth")
    model = nn.ModuleDict({"backbone": nn.Linear(2, 3)})

    with pytest.raises(ValueError, match="does not fit"):
        CentripetalNetCheckpointer(model, strict=False).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    "changed",
    [
        {"input_format": None},
        {"pixel_mean": 3},
        {"pixel_std": ["a", "b", "c"]},
        {"pixel_mean": [0.0, 0.0]},
        {"input_format": "BGR"},
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_the_input_convention_of_a_file_is_checked(model, tmp_path, changed, strict):
    model.input_format = "RGB"
    model.pixel_mean, model.pixel_std = torch.zeros(3), torch.ones(3)
    about = {"input_format": "RGB", "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3, **changed}
    torch.save({"model": model.state_dict(), "about": about}, tmp_path / "model.pth")

    with pytest.raises(ValueError, match="'about' is invalid|another channel order"):
        CentripetalNetCheckpointer(model, strict=strict).load(str(tmp_path / "model.pth"))


def saved_twice(folder):
    """A checkpointer whose model was saved with the weight 1, then with 2."""
    model = torch.nn.Linear(1, 1, bias=False)
    checkpointer = CentripetalNetCheckpointer(model, str(folder))
    for iteration in (1, 2):
        torch.nn.init.constant_(model.weight, iteration)
        checkpointer.save(f"model_{iteration}", iteration=iteration)
        path = folder / f"model_{iteration}.pth"
        # The file system's times may be coarse.
        os.utime(path, (iteration, iteration))
    torch.nn.init.constant_(model.weight, 0)
    return checkpointer


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "missing"])
def test_if_the_last_checkpoint_is_damaged_the_one_before_it_is_used(damage, tmp_path, caplog):
    checkpointer = saved_twice(tmp_path)
    last = tmp_path / "model_2.pth"
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    elif damage == "overwritten":
        last.write_bytes(b"no checkpoint")
    else:
        last.unlink()

    extra = checkpointer.resume_or_load("", resume=True)

    assert extra["iteration"] == 1 and checkpointer.model.weight == 1
    assert "model_2.pth" in caplog.text


def test_if_all_checkpoints_are_damaged_resuming_is_an_error(tmp_path):
    checkpointer = saved_twice(tmp_path)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"no checkpoint")

    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        checkpointer.resume_or_load("", resume=True)


def test_an_interrupted_save_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    checkpointer = saved_twice(tmp_path)

    def stop(data, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    for name in ("model_2", "model_3"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name, iteration=3)

    assert not (tmp_path / "model_3.pth").exists()
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 2


def test_a_file_that_is_not_resumable_is_not_the_last_checkpoint(tmp_path):
    checkpointer = saved_twice(tmp_path)

    checkpointer.save("model_other", resumable=False, iteration=3)

    assert (tmp_path / "model_other.pth").is_file()
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 2


@pytest.mark.parametrize("is_last", [True, False])
def test_a_training_never_resumes_from_where_it_diverged(is_last, tmp_path, caplog):
    checkpointer = saved_twice(tmp_path)
    (tmp_path / "model_2.pth").write_bytes(b"no checkpoint")

    checkpointer.save("model_diverged", resumable=is_last, iteration=3)

    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert "model_diverged.pth (the training diverged there)" in caplog.text


def test_a_remote_folder_has_checkpoints_like_a_local_one(remote, caplog):
    model = nn.Linear(1, 1, bias=False)
    checkpointer = CentripetalNetCheckpointer(model, "test-store://output")
    checkpointer.path_manager.mkdirs("test-store://output")
    periodic = hooks.PeriodicCheckpointer(checkpointer, 1, max_iter=100, max_to_keep=2)
    for iteration in range(8, 12):
        nn.init.constant_(model.weight, iteration)
        periodic.step(iteration)
    nn.init.constant_(model.weight, 0)
    output = remote / "output"

    assert sorted(x.name for x in output.iterdir()) == [
        *("last_checkpoint", "model_0000010.pth", "model_0000011.pth"),
    ]
    assert checkpointer.resume_or_load("")["iteration"] == 11 and model.weight == 11

    (output / "model_0000011.pth").write_bytes(b"no checkpoint")
    checkpointer.save("model_best", resumable=False, iteration=3)
    assert checkpointer.resume_or_load("")["iteration"] == 10 and model.weight == 10
    assert "test-store://output/model_0000011.pth" in caplog.text


def load_in_process(folder, resume):
    """Loads output/model.pth in this process's own folder and writes the result to a file."""
    os.chdir(folder / str(comm.get_rank()))
    checkpointer = CentripetalNetCheckpointer(nn.Linear(1, 1), "output")
    try:
        checkpointer.resume_or_load("output/model.pth", resume=resume)
        result = "loaded"
    # The test compares the errors of the processes, whatever they are.
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    Path("result").write_text(result)
    comm.synchronize()
    # PyTorch 2.14 aborts some processes of a group at their regular end.
    os._exit(0)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("second", ["missing", "damaged"])
def test_if_one_machine_cannot_load_the_checkpoint_all_processes_raise(second, resume, tmp_path):
    for rank in (0, 1):
        output = tmp_path / str(rank) / "output"
        output.mkdir(parents=True)
        CentripetalNetCheckpointer(nn.Linear(1, 1), str(output)).save("model", iteration=1)
    if second == "missing":
        (output / "model.pth").unlink()
    else:
        (output / "model.pth").write_bytes(b"no checkpoint")

    launch(load_in_process, 2, dist_url="auto", args=(tmp_path, resume))

    main, other = ((tmp_path / x / "result").read_text() for x in "01")
    assert main.startswith("RuntimeError: process 1 failed:\n")
    assert main.rstrip().endswith(other)
    assert "output/model.pth" in other
