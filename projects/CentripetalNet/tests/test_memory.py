"""The memory of a training does not grow."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from training import kill, start, train_few


def memory_of(process: int) -> float:
    """MB of a process and its children; shared memory counts once.

    Libraries are not counted: their share depends on the other processes of the machine.
    """
    folder = Path(f"/proc/{process}")
    children = (folder / "task" / str(process) / "children").read_text().split()
    lines = (folder / "smaps_rollup").read_text().splitlines()
    kilobytes = (int(x.split()[1]) for x in lines if x.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return sum(kilobytes) / 1024 + sum(map(memory_of, map(int, children)))


def newest_iteration(output) -> int:
    try:
        return json.loads((output / "metrics.json").read_text().splitlines()[-1])["iteration"]
    # The file is missing, or its last line is incomplete.
    except (FileNotFoundError, IndexError, ValueError):
        return 0


@pytest.mark.slow
def test_memory_is_constant_over_two_thousand_iterations_with_workers(datasets, tmp_path):
    opts = ["SOLVER.MAX_ITER", "2000", "DATALOADER.NUM_WORKERS", "2", "DATASETS.TEST", "()"]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "200", "SOLVER.CHECKPOINTS_KEPT", "2"]
    process = start(*train_few(tmp_path, *opts), DATASET=datasets / "silhouettes")
    samples = []
    try:
        while process.poll() is None and newest_iteration(tmp_path) < 1980:
            time.sleep(1)
            try:
                samples.append((newest_iteration(tmp_path), memory_of(process.pid)))
            # A process has just ended.
            except (FileNotFoundError, ProcessLookupError):
                continue
        process.wait(timeout=120)
    finally:
        errors = kill(process)

    assert process.returncode == 0, errors[-3000:]
    iterations, megabytes = np.array(samples).T
    early = np.median(megabytes[(iterations >= 200) & (iterations < 500)])
    late = np.median(megabytes[iterations >= 1700])
    print(f"memory: {early:.0f} MB at iterations 200 to 500, {late:.0f} MB from 1,700 on")
    assert abs(late - early) < 0.05 * early
