"""The runner of `make gpu-check`, and all its steps on the CPU."""

import json
import os
import sys
import time
from contextlib import suppress

import pytest
import torch
from conftest import PROJECT
from training import run

from centripetalnet.commands import gpu_check
from centripetalnet.commands.gpu_check import Result, run_step
from centripetalnet.commands.measuring import Row, judged

TOOL = PROJECT / "tools" / "gpu_check.py"
ROW = Row("speed", 3.0, "m/s")
# The beginning of a step, which writes a row.
BEGIN = """
import json, os, subprocess, sys
rows = open(sys.argv[-1], "w")
"""


def run_code(code, folder, row=ROW, limit=60):
    """Runs Python code as a step that writes a row before."""
    code = f"{BEGIN}print(json.dumps({vars(row)}), file=rows, flush=True)\n{code}"
    command = [sys.executable, "-c", code]
    return run_step("speed", command, limit, str(folder), dict(os.environ))


def test_a_step_that_fails_keeps_its_complete_rows_and_shows_its_last_lines(tmp_path):
    crash = """
rows.write('{"part": ')
rows.flush()
print("last words", flush=True)
os.abort()
"""

    result = run_code(crash, tmp_path)

    assert result.result == "failed with exit status -6"
    assert result.rows == [ROW]
    assert "last words" in result.output


def is_running(pid):
    with suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        # A zombie has ended.
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_a_step_that_hangs_is_killed_with_its_children(tmp_path):
    hang = """
child = subprocess.Popen(["sleep", "100"])
print(child.pid, flush=True)
child.wait()
"""

    result = run_code(hang, tmp_path, limit=3)

    assert result.result == "killed after 3 s" and result.rows
    deadline = time.monotonic() + 10
    while is_running(int(result.output.split()[-1])) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(int(result.output.split()[-1]))


@pytest.mark.parametrize(
    "value, goal, met", [(5, ">= 5", True), (4.9, ">= 5", False), (5.1, "<= 5", False)]
)
def test_a_missed_goal_is_the_result_of_its_step(value, goal, met, tmp_path):
    row = judged("speed", value, "m/s", goal)

    result = run_code("", tmp_path, row)

    assert row.met is met and result.rows == [row]
    assert result.result == ("passed" if met else "missed a goal")


def test_after_a_failed_step_come_the_others_and_the_status_is_1(tmp_path, monkeypatch):
    def fake(step, *_):
        assert (tmp_path / "gpu_report.md").exists() == (step != "operators")
        return Result(step, "failed with exit status 1" if step == "operators" else "passed", 1.0)

    monkeypatch.setattr(gpu_check, "run_step", fake)
    steps = ["--only", "operators", "sanitizer", "kernels"]

    status = gpu_check.main(["--dry-run", "--output", str(tmp_path), *steps])

    assert status == 1
    found = json.loads((tmp_path / "gpu_report.json").read_text())["steps"]
    results = ["failed with exit status 1", "passed", "needs a GPU"]
    assert [(x["step"], x["result"]) for x in found] == list(
        zip(("operators", "kernels", "sanitizer"), results)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_without_a_gpu_a_dry_run_has_to_be_asked_for(tmp_path):
    result = run(TOOL, "--output", tmp_path / "gpu")

    assert result.returncode == 1
    assert "finds no GPU" in result.stderr and "--dry-run" in result.stderr
    assert not (tmp_path / "gpu").exists()


@pytest.mark.slow
def test_every_step_runs_on_the_cpu(tmp_path):
    result = run(TOOL, "--dry-run", "--output", tmp_path / "gpu")

    report = (tmp_path / "gpu" / "gpu_report.md").read_text()
    assert result.returncode == 0, report
    content = json.loads((tmp_path / "gpu" / "gpu_report.json").read_text())
    results = {x["step"]: x["result"] for x in content["steps"]}
    assert [x for x, result in results.items() if result != "passed"] == [
        *("build", "several_gpus", "sanitizer")
    ]
    assert len(results) == 12
    for step in content["steps"]:
        assert bool(step["rows"]) == (step["result"] == "passed")
        for row in step["rows"]:
            assert row["part"] in report and f"{row['value']:.4g}" in report
