"""Reads pickles of tensors and plain values without Python's unpickler.

A pickle is a program. This reader only builds lists, tuples, dicts, plain values and dense tensors.
It imports nothing by name and sets nothing but items of dicts and lists, and tensors that it made.
"""

import math
import pickletools
from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import chain
from typing import IO, Any, Callable, NamedTuple

import torch
from torch import Tensor

_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_DTYPES = {
    f"{module} {name}Storage": dtype
    for name, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda")
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    # Strings of Python 2, read as latin-1.
    *("SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SCALARS = (str, int, float, bool, type(None))
# An instruction may create an object larger than itself. A training checkpoint of Hourglass-104 has
# 90,000 instructions.
_MAX_INSTRUCTIONS = 1_000_000
# PyTorch's limit.
_MAX_DIMENSIONS = 64


class Global(NamedTuple):
    """A name that a pickle imports, as "module name". It is never imported."""

    name: str


class Vocabulary(NamedTuple):
    """What the pickles of one format may name, and what is made of it."""

    functions: dict[str, Callable]
    """What is called for a name, as "module name"."""
    values: Collection[str]
    """Names that are arguments only."""
    set_state: Callable[[Any, Any], None]
    """Sets the state of an object, given as (state, object)."""
    load_persistent: Callable[[Any], Any]
    """Returns the object of a persistent id."""


class StorageId(NamedTuple):
    """A pickle's reference to a storage, whose values are outside the pickle."""

    dtype: torch.dtype
    key: str
    numel: int
    view: Any
    """In files before PyTorch 1.6 key, offset and size of a part of the storage, or None."""

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def read_pickle(file: IO[bytes], load_storage: Callable[[StorageId], Tensor]) -> Any:
    """Reads one pickle with the instructions that ``torch.save`` writes.

    Args:
        file: is positioned after the pickle on return.
        load_storage: returns the values of a storage, (numel,) of its dtype.

    Raises:
        ValueError: if the pickle has other instructions or names.
    """
    return run_pickle(
        file,
        Vocabulary(_FUNCTIONS, _DTYPES, set_metadata, lambda pid: load_storage(_storage_id(pid))),
    )


def run_pickle(file: IO[bytes], vocabulary: Vocabulary) -> Any:
    """Reads one pickle of a format with these names.

    Args:
        file: is positioned after the pickle on return.
        vocabulary: of the format.

    Raises:
        ValueError: if the pickle has other instructions or names.
    """
    stack: list = []
    marks: list = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list:
        if count > len(stack):
            raise ValueError("the pickle pops from an empty stack")
        return [stack.pop() for _ in range(count)][::-1]

    def pop_to_mark() -> list:
        return pop(len(stack) - marks.pop())

    def known(name: str) -> Global:
        if name not in vocabulary.functions and name not in vocabulary.values:
            raise ValueError(f"it imports {name.replace(' ', '.')}")
        return Global(name)

    def call(function: Any, arguments: Any) -> Any:
        if type(function) is not Global or function.name not in vocabulary.functions:
            raise ValueError("the pickle calls something that is no function")
        return vocabulary.functions[function.name](*arguments)

    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if number >= _MAX_INSTRUCTIONS:
            raise ValueError("the pickle has more instructions than a checkpoint needs")
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            _append(pop(1) if name == "APPEND" else pop_to_mark(), stack[-1])
        elif name in ("SETITEM", "SETITEMS"):
            _set_items(pop(2) if name == "SETITEM" else pop_to_mark(), stack[-1])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(known(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = pop(2)
            stack.append(known(f"{_text(module)} {_text(attribute)}"))
        elif name == "REDUCE":
            stack.append(call(*pop(2)))
        elif name == "BUILD":
            vocabulary.set_state(*pop(1), stack[-1])
        elif name == "BINPERSID":
            stack.append(vocabulary.load_persistent(*pop(1)))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the pickle has the instruction {name}")
    raise ValueError("the pickle has no end")


def _text(name: Any) -> str:
    # Of other objects, such as nested lists, the text may be larger than the file.
    if type(name) is not str:
        raise ValueError("the pickle imports something that is no name")
    return name


def _append(items: list, target: Any) -> None:
    if type(target) is not list:
        raise ValueError(f"the pickle appends to a {type(target).__name__}")
    target.extend(items)


def _set_items(items: Sequence, target: Any) -> None:
    if type(target) not in (dict, OrderedDict) or len(items) % 2:
        raise ValueError(f"the pickle sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2]):
        # The hash of deeply nested tuples would exhaust the stack of the process.
        parts = key if type(key) is tuple else (key,)
        if len(parts) > _MAX_DIMENSIONS or not all(isinstance(x, _SCALARS) for x in parts):
            raise ValueError("a key of a dict is not a plain value")
        target[key] = value


def ordered_dict(items: Any = None) -> OrderedDict:
    """The call of ``collections.OrderedDict``; a list of pairs is emptied."""
    result: OrderedDict = OrderedDict()
    if items is None:
        return result
    pairs = type(items) is list and all(type(x) in (list, tuple) and len(x) == 2 for x in items)
    if not pairs:
        raise ValueError("an OrderedDict is made of something other than pairs")
    _set_items([*chain.from_iterable(items)], result)
    # Many calls with one list would make more than the file has.
    items.clear()
    return result


def set_metadata(state: Any, target: Any) -> None:
    """Sets ``_metadata``, the versions of modules in ``nn.Module.state_dict``."""
    if type(target) is not OrderedDict or type(state) is not dict or set(state) - {"_metadata"}:
        raise ValueError(f"the pickle sets the state of a {type(target).__name__}")
    for value in state.values():
        target._metadata = value


def are_sizes(values: Any) -> bool:
    """Whether it is a tuple that may be the shape of a tensor."""
    return (
        type(values) is tuple
        and len(values) <= _MAX_DIMENSIONS
        and all(type(x) is int and x >= 0 for x in values)
    )


def _storage_id(pid: Any) -> StorageId:
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ValueError("the pickle has a persistent id that is not a storage")
    _, kind, key, _, numel, *rest = pid
    if type(kind) is not Global or kind.name not in _DTYPES:
        raise ValueError("a storage has an unknown type")
    if type(key) is not str or not are_sizes((numel,)):
        raise ValueError("a storage has no key or no size")
    return StorageId(_DTYPES[kind.name], key, numel, *(rest or [None]))


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    if not isinstance(storage, Tensor) or storage.dim() != 1 or metadata:
        raise ValueError("a tensor has no plain storage")
    if not (are_sizes((offset,)) and are_sizes(size) and are_sizes(stride)):
        raise ValueError("the shape of a tensor is not a tuple of sizes")
    # With strides of 0 a tensor may be larger than its storage, and a small file than the memory.
    # Factors are checked before products, which could be large integers. The stride of a dimension
    # of 1 has no effect and may be any.
    steps = [step for n, step in zip(size, stride) if n > 1]
    fits = 0 in size or (
        all(x <= len(storage) for x in (offset, *size, *steps))
        and math.prod(size) <= len(storage)
        and offset + sum((n - 1) * step for n, step in zip(size, stride)) < len(storage)
    )
    if not fits:
        raise ValueError(f"a tensor is larger than its storage of {len(storage)} values")
    return storage.as_strided(size, stride, offset)


def _size(values: Any) -> torch.Size:
    if not are_sizes(values):
        raise ValueError("a torch.Size is not a tuple of sizes")
    return torch.Size(values)


def _parameter(data: Any, requires_grad: Any = False, hooks: Any = None) -> Any:
    return data


_FUNCTIONS: dict[str, Callable] = {
    "collections OrderedDict": ordered_dict,
    "torch Size": _size,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
