import importlib
import re
import warnings

import pytest
import torch

from centripetalnet.layers import corner_pool, corner_pool_reference, extension


@pytest.mark.parametrize("reason", ["extension", "device"])
def test_without_a_kernel_the_reference_runs_with_one_warning(reason, monkeypatch):
    extension._warn_once.cache_clear()
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

    assert re.search(problem, extension._load())
