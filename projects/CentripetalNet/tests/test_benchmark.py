import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from centripetalnet.commands import compare

TOOL = Path(__file__).parents[1] / "tools" / "benchmark.py"


def test_table_and_file_contain_values_and_goals(tmp_path):
    output = tmp_path / "benchmark.json"
    command = [sys.executable, str(TOOL), "--only", "decoding", "mapper", "--output", str(output)]

    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    decoding, mapper, large = json.loads(output.read_text())["rows"]
    assert decoding["goal"] == "<= 8" and decoding["met"] == (decoding["value"] <= 8)
    assert mapper["goal"] == ">= 60" and mapper["met"] == (mapper["value"] >= 60)
    assert large["goal"] == "<= 0.7" and large["met"] == (large["value"] <= 0.7)
    for row in (decoding, mapper, large):
        line = next(x for x in result.stdout.splitlines() if row["part"] in x)
        assert f"{row['value']:.4g}" in line and row["goal"] in line
        assert ("missed" in line) == (not row["met"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_configs_are_compared(monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    names = ["centripetal_tiny", "centripetal_mask_lite0"]
    tool = str(TOOL.with_name("compare_configs.py"))
    monkeypatch.setattr(sys, "argv", [tool, *names, "--runs", "1"])
    # Without bfloat16 arithmetic a CPU needs a minute for images of the default size.
    monkeypatch.setattr(compare, "IMAGE_SIZE", (96, 128))

    with pytest.raises(SystemExit) as end:
        runpy.run_path(tool, run_name="__main__")

    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    rows = [x.strip("|").split("|") for x in lines if x.startswith("| cent")]
    assert [x[0].strip() for x in rows] == names
    assert [x[1].strip() for x in rows] == ["1.9 M", "3.6 M"]
    assert all(float(x) > 0 for row in rows for x in row[3:6])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_memory_of_a_call_is_its_peak(tmp_path):
    code = """
import torch
from centripetalnet.commands.measuring import peak_megabytes

def call():
    for _ in range(3):
        torch.ones(20, 2**18)
    return torch.ones(5, 2**18)

print(peak_megabytes(call))
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )

    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(20, abs=3)
