"""Reads pickles of NumPy arrays as torch tensors, without Python's unpickler and without NumPy.

Detectron2's model zoo has such files, written by Python 2 and 3. The names of functions and the
state of arrays and dtypes are those of NumPy 1 and 2.
"""

import io
import math
import sys
from typing import Any, Callable

import torch
from torch import Tensor

from .restricted_pickle import (
    Global,
    Vocabulary,
    are_sizes,
    ordered_dict,
    run_pickle,
    set_metadata,
)

_DTYPES = {
    **{"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "b1": torch.bool},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64},
    "u1": torch.uint8,
}
_ARRAY = "numpy ndarray"
# Byte orders that this machine reads: native, or none as values have one byte.
_ORDERS = ("<" if sys.byteorder == "little" else ">", "=", "|")


def read_numpy_pickle(content: bytes) -> Any:
    """Reads a pickle of protocol 2 to 5.

    Returns:
        Its containers and plain values; arrays are tensors that together are no larger than the
        pickle.

    Raises:
        ValueError: if it holds anything else.
    """
    arrays = _Arrays(len(content))
    vocabulary = Vocabulary(arrays.functions(), {_ARRAY}, arrays.set_state, _no_storage)
    # Of BytesIO no more is read than there is, whatever length the pickle claims.
    return run_pickle(io.BytesIO(content), vocabulary)


class _Arrays:
    """What is called for NumPy's functions and methods."""

    def __init__(self, size: int):
        """
        Args:
            size: bytes of the pickle. It may use one string many times; what is made of strings is
                no larger in total.
        """
        self.left = size

    def functions(self) -> dict[str, Callable]:
        calls: dict[str, Callable] = {
            "multiarray _reconstruct": self.new_array,
            "multiarray scalar": self.scalar,
            "numeric _frombuffer": self.from_buffer,
        }
        return {
            **{f"numpy.core.{name}": call for name, call in calls.items()},
            # NumPy 2.
            **{f"numpy._core.{name}": call for name, call in calls.items()},
            "numpy dtype": _dtype,
            "_codecs encode": self.encode,
            "__builtin__ bytes": _no_bytes,
            "collections OrderedDict": ordered_dict,
        }

    def set_state(self, state: Any, target: Any) -> None:
        if isinstance(target, Tensor):
            _, shape, dtype, is_fortran, data = state
            target.data = self.tensor(data, dtype, shape, bool(is_fortran))
        elif isinstance(target, torch.dtype):
            _check_dtype(state)
        else:
            set_metadata(state, target)

    def new_array(self, kind: Any, shape: Any, code: Any) -> Tensor:
        """An array whose state is set later."""
        if kind != Global(_ARRAY):
            raise ValueError("the pickle makes an object that is no NumPy array")
        return torch.empty(0)

    def scalar(self, dtype: Any, data: Any) -> Any:
        return self.tensor(data, dtype, ()).item()

    def from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> Tensor:
        if order not in ("C", "F"):
            raise ValueError(f"an array has the order {_shown(order)}, expected 'C' or 'F'")
        return self.tensor(data, dtype, shape, order == "F")

    def encode(self, text: Any, encoding: Any) -> bytearray:
        """Bytes, which protocol 2 has as a string."""
        if encoding != "latin1" or type(text) is not str:
            raise ValueError(f"a string has the encoding {_shown(encoding)}, expected latin1")
        return self.writable(text)

    def writable(self, data: Any) -> bytearray:
        """The bytes of an array, (n,), copied unless they can be changed."""
        if type(data) is bytearray:
            return data
        if type(data) not in (bytes, str):
            raise ValueError(f"the values of an array are a {type(data).__name__}, expected bytes")
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("its arrays are larger than the file")
        return bytearray(data.encode("latin1") if type(data) is str else data)

    def tensor(self, data: Any, dtype: Any, shape: Any, is_fortran: bool = False) -> Tensor:
        """
        Args:
            data: the values' bytes.
            dtype: a torch.dtype.
            shape: a tuple.
            is_fortran: whether the first index changes fastest in ``data``.
        """
        if not isinstance(dtype, torch.dtype) or not are_sizes(shape):
            raise ValueError("an array has no dtype or an invalid shape")
        data = self.writable(data)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(
                f"an array of the shape {str(shape):.100} and {dtype} has {len(data)} bytes"
            )
        if not data:
            return torch.empty(shape, dtype=dtype)
        values = torch.frombuffer(data, dtype=dtype)
        if is_fortran:
            return values.reshape(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
        return values.reshape(shape)


def _shown(value: Any) -> str:
    # The text of nested lists may be larger than the file.
    return repr(value[:20]) if type(value) is str else f"a {type(value).__name__}"


def _dtype(name: Any, align: Any = False, copy: Any = True) -> torch.dtype:
    if type(name) is not str or name not in _DTYPES:
        raise ValueError(
            f"an array has the dtype {_shown(name)}, expected one of {', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def _check_dtype(state: Any) -> None:
    _, order, *parts = state
    if order not in _ORDERS:
        raise ValueError("it was written on a machine of another byte order")
    if parts[:3] != [None] * 3:
        raise ValueError("a dtype has parts, expected plain numbers")


def _no_bytes() -> bytearray:
    """Empty bytes, which protocol 2 writes as a call."""
    return bytearray()


def _no_storage(pid: Any) -> None:
    raise ValueError("the pickle has a persistent id, which only files of torch.save have")
