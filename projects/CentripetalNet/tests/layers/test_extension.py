import importlib
import os
import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from centripetalnet.layers import corner_pool, corner_pool_reference, extension


@pytest.mark.parametrize("reason", ["extension", "device"])
def test_without_a_kernel_the_reference_runs_with_one_warning(reason, monkeypatch):
    # It forgets what it has warned of.
    importlib.reload(extension)
    if reason == "extension":
        monkeypatch.setattr(extension, "PROBLEM", "centripetalnet._C is not built.")
    else:
        monkeypatch.setitem(extension.KERNEL_DEVICES, "corner_pool", frozenset())
    input = torch.randn(1, 2, 3, 4)

    with pytest.warns(UserWarning, match="pip install --no-build-isolation -e"):
        output = corner_pool(input, "top")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corner_pool(input, "left")

    assert torch.equal(output, corner_pool_reference(input, "top"))


@pytest.mark.parametrize(
    "error, problem",
    [
        (ModuleNotFoundError("No module", name="centripetalnet._C"), "is not built"),
        (ModuleNotFoundError("No module named 'other'", name="other"), "loaded: .*'other'"),
        (ImportError("_C.so: undefined symbol: _ZN2at"), "loaded: .*undefined symbol: _ZN2at"),
    ],
)
def test_reason_for_a_missing_extension_is_reported(error, problem, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)

    try:
        assert re.search(problem, importlib.reload(extension).PROBLEM)
    finally:
        monkeypatch.undo()
        importlib.reload(extension)


def run_limited(capability, file, tests):
    """Runs tests of the operators in a new process that is limited to an instruction set."""
    command = [sys.executable, "-m", "pytest", "-q", Path(__file__).with_name(file), "-k", tests]
    environment = {**os.environ, "CENTRIPETALNET_CPU_CAPABILITY": capability}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
@pytest.mark.parametrize(
    "file, tests",
    [
        ("test_corner_pool.py", "lines_of_any_length"),
        ("test_gaussian_focal_loss.py", "equals_the_formula"),
    ],
)
def test_kernels_for_lower_instruction_sets_agree(capability, file, tests):
    result = run_limited(capability, file, tests)

    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other machines have one instruction set"
)
def test_an_unknown_instruction_set_is_an_error():
    result = run_limited("sse9", "test_corner_pool.py", "lines_of_any_length")

    assert result.returncode != 0
    assert re.search("ValueError: .*_CPU_CAPABILITY must be .* got 'sse9'", result.stdout)
