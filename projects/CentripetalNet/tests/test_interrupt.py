"""Ctrl-C ends all processes of a training, and leaves no partial or temporary files."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from training import ANYWHERE, kill, start, train_few, wait_for

WORKERS = ["DATALOADER.NUM_WORKERS", "2", "SOLVER.CHECKPOINT_PERIOD", "2", *ANYWHERE]
WORKERS += ["SOLVER.CHECKPOINTS_KEPT", "1", "SOLVER.IMS_PER_BATCH", "2"]
WORKERS += ["TEST.AUG.ENABLED", "False"]


def processes_of(session):
    """Ids of the running processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def interrupted(process):
    """Sends SIGINT to the process group, as Ctrl-C does, and checks that all processes end."""
    assert len(processes_of(process.pid)) > 0
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=60)
        until = time.monotonic() + 10
        while processes_of(process.pid) and time.monotonic() < until:
            time.sleep(0.05)
        left = processes_of(process.pid)
    finally:
        kill(process)
    assert process.returncode != 0
    assert left == []


def mapped_files():
    """Device and inode of the files in the memory of running processes."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/maps"):
        # The process has ended, or belongs to another user.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            found.update(tuple(x.split()[3:5]) for x in path.read_text().splitlines())
    return found


def left_in_shared_memory(before):
    """New files that no process uses, as tests that run at the same time have files too."""
    new = set(Path("/dev/shm").iterdir()) - before
    mapped = mapped_files()
    left = []
    for path in new:
        with suppress(FileNotFoundError):
            status = path.stat()
            # Not by name: the C library renames semaphores after it has mapped them.
            device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
            if (device, str(status.st_ino)) not in mapped:
                left.append(path)
    return left


@pytest.fixture
def begin(datasets, tmp_path):
    """Starts a training with a separate folder for temporary files."""
    before = set(Path("/dev/shm").iterdir())
    # The path of a socket in it has at most 107 characters, for which tmp_path can be too long.
    temporary = Path(tempfile.mkdtemp())
    started = []

    def begin(*opts, flags=(), **environment):
        output = tmp_path / "output"
        output.mkdir()
        command = train_few(output, *WORKERS, *opts, flags=flags)
        root = datasets / "silhouettes"
        started.append(start(*command, DATASET=root, TMPDIR=str(temporary), **environment))
        return output, started[-1]

    yield begin
    # It still runs if the test failed before the interrupt.
    for process in started:
        kill(process)
    left = list(temporary.iterdir())
    shutil.rmtree(temporary)
    assert left == []
    assert left_in_shared_memory(before) == []
    assert list((tmp_path / "output").glob("*.part")) == []


def test_while_training_in_two_processes(begin):
    output, process = begin("DATASETS.TEST", "()", flags=["--num-gpus", "2"])
    wait_for((output / "last_checkpoint").exists, process)

    interrupted(process)


def test_while_saving(begin):
    output, process = begin("DATASETS.TEST", "()", DISTURB="stall_while_saving model_0000003")
    wait_for((output / "disturbed").exists, process)

    interrupted(process)

    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.slow
def test_while_evaluating(begin):
    output, process = begin("TEST.EVAL_PERIOD", "1")
    wait_for((output / "inference").exists, process)

    interrupted(process)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 3, 3.5, 4, 4.5, 5])
def test_at_any_moment_of_the_start(begin, seconds):
    _, process = begin("DATASETS.TEST", "()", flags=["--num-gpus", "2"])
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        interrupted(process)
