"""Where a computation waits for a GPU to finish all its work; on the CPU, where it would."""

import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Optional

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import centripetalnet

PACKAGE = str(Path(centripetalnet.__file__).parent)

# Operators whose result is a Python value, or whose output size depends on values.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"}
WAITING |= {"_unique2", "unique_dim", "unique_consecutive", "bincount"}
# Python numbers become a tensor, which is copied to the GPU.
WAITING |= {"lift_fresh"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# On the CPU they call no operator.
METHODS = {"cpu", "numpy", "tolist", "__array__"}


class Operators(TorchDispatchMode):
    def __init__(self, note: Callable[[], None]):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = name in WAITING
        if name in INDEXING:
            masks = (torch.bool, torch.uint8)
            waits = any(isinstance(x, Tensor) and x.dtype in masks for x in tree_leaves(args[1]))
        if name == "repeat_interleave":
            waits = (kwargs or {}).get("output_size") is None
        if waits:
            self.note()
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    def __init__(self, note: Callable[[], None]):
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", None) in METHODS:
            self.note()
        return func(*args, **(kwargs or {}))


def caller() -> Optional[str]:
    """The innermost function of the package that is running."""
    frames = reversed(traceback.extract_stack())
    names = (x.name for x in frames if x.filename.startswith(PACKAGE))
    return next((x for x in names if not x.startswith("<")), None)


@contextmanager
def synchronisations(device: str) -> Iterator[set]:
    """Gathers the functions of the package that wait for the device; None is code outside it.

    Args:
        device: "cuda" asks PyTorch. On the CPU operators are recognised, but not copies between
            devices by ``Tensor.to``.
    """
    found = set()

    def note(*_args, **_kwargs) -> None:
        found.add(caller())

    with ExitStack() as stack:
        if device == "cuda":
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        else:
            stack.enter_context(Operators(note))
            stack.enter_context(Methods(note))
        yield found
