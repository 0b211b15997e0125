"""Pickles of NumPy arrays, as in Detectron2's model zoo: what is read, and what is refused."""

import io
import pickle
import resource
import struct
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from centripetalnet.checkpoint.safe_load import load_tensors

X = np.arange(6, dtype=np.float32).reshape(2, 3)
ARRAYS = {
    **{name: np.array([0, 1, 3]).astype(name) for name in ("f2", "f4", "f8", "u1", "b1")},
    **{name: np.array([-1, 2]).astype(name) for name in ("i1", "i2", "i4", "i8")},
    "C": X,
    "Fortran": np.asfortranarray(X),
    "strided": np.arange(24.0).reshape(4, 6)[::2, 1::2],
    "0-d": np.array(3.0),
    "empty": np.zeros((0, 2), np.float32),
    "4-d": np.arange(24).reshape(2, 3, 4, 1),
}


@pytest.fixture
def load(tmp_path):
    def load_bytes(content: bytes):
        (tmp_path / "given.pkl").write_bytes(content)
        return load_tensors(str(tmp_path / "given.pkl"))

    return load_bytes


def as_numpy_2(file: bytes, protocol: int) -> bytes:
    """The file with the names of modules that NumPy 2 writes."""
    if protocol < 4:
        return file.replace(b"cnumpy.core.", b"cnumpy._core.")
    # A frame may be of any size.
    pieces = file.split(b"\x95", 1)
    file = pieces[0] + pieces[1][8:]
    for name in (b"numpy.core.multiarray", b"numpy.core.numeric"):
        new = name.replace(b".core", b"._core")
        file = file.replace(bytes([len(name)]) + name, bytes([len(new)]) + new)
    return file


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_numpy_2", [False, True])
def test_arrays_of_every_kind_and_protocol_become_the_same_tensors(load, protocol, is_numpy_2):
    content = {"model": OrderedDict(ARRAYS), "__author__": "someone", "scalar": np.float32(0.5)}
    file = pickle.dumps(content, protocol)

    given = load(as_numpy_2(file, protocol) if is_numpy_2 else file)

    assert given["__author__"] == "someone" and given["scalar"] == 0.5
    assert list(given["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        expected = torch.from_numpy(array.copy())
        assert given["model"][name].dtype == expected.dtype
        assert torch.equal(given["model"][name], expected), name


def python_2(data: bytes, order=b"<", shape=b"K\x02K\x03\x86", kind=b"f4"):
    """The pickle that Python 2 writes of {"blobs": {"conv1_w": array}}, with protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R"
        + (b"q\x04(K\x01" + shape + b"cnumpy\ndtype\nq\x05U\x02" + kind + b"K\x00K\x01\x87R")
        + (b"q\x06(K\x03U\x01" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
        + (data + b"tb")
    )
    return b"\x80\x02}q\x00U\x05blobs}q\x01U\x07conv1_w" + array + b"ss."


SHORT, LONG = b"U\x18", b"T\x18\x00\x00\x00"


@pytest.mark.parametrize("instruction", [SHORT, LONG])
def test_a_pickle_of_python_2_is_read(load, instruction):
    values = np.array([[0, 1, -1], [0.1, 1e9, 3]], np.float32)

    given = load(python_2(instruction + values.tobytes()))

    assert torch.equal(given["blobs"]["conv1_w"], torch.from_numpy(values))


def numpy_call(name: bytes, arguments: bytes) -> bytes:
    return b"\x80\x02}U\x01xc" + name + b"\n" + arguments + b"Rs."


OTHER_ORDER = b">" if sys.byteorder == "little" else b"<"
DTYPE = b"cnumpy\ndtype\nU\x02f4\x89\x88\x87R"
REFUSED = {
    "code": (pickle.dumps({"x": print}), "imports builtins.print"),
    "objects": (pickle.dumps({"x": np.array([{}, []], object)}), "dtype.*O8"),
    "text": (pickle.dumps({"x": np.array(["ab"])}), "dtype.*U2"),
    "complex numbers": (pickle.dumps({"x": np.ones(1, complex)}), "dtype.*c16"),
    "records": (pickle.dumps({"x": np.zeros(1, [("a", "f4")])}), "dtype.*V4"),
    "dates": (pickle.dumps({"x": np.zeros(1, "M8[s]")}), "dtype.*M8"),
    "other byte order": (python_2(SHORT + bytes(24), OTHER_ORDER), "byte order"),
    "too few values": (python_2(b"U\x10" + bytes(16)), r"shape \(2, 3\) .*16 bytes"),
    "too many values": (python_2(b"U\x1c" + bytes(28)), r"shape \(2, 3\) .*28 bytes"),
    "negative size": (python_2(SHORT + bytes(24), shape=b"J\xff\xff\xff\xffK\x03\x86"), "shape"),
    "values from a list": (python_2(b"]"), "list"),
    "character above 255": (python_2(b"X\x03\x00\x00\x00\xe4\xb8\xad"), "latin"),
    "class of arrays": (
        numpy_call(b"numpy.core.multiarray\n_reconstruct", b"cnumpy\ndtype\nK\x00\x85U\x01b\x87"),
        "no NumPy array",
    ),
    "call of a class": (numpy_call(b"numpy\nndarray", b"K\x05\x85"), "no function"),
    "other encoding": (numpy_call(b"_codecs\nencode", b"U\x01xU\x05utf-7\x86"), "utf-7"),
    "bytes of a size": (numpy_call(b"__builtin__\nbytes", b"J\x00\x00\x00\x70\x85"), "argument"),
    "order of axes": (
        numpy_call(
            b"numpy.core.numeric\n_frombuffer",
            b"(U\x04abcd" + DTYPE + b"K\x01\x85U\x01Kt",
        ),
        "order",
    ),
    "state of a number": (b"\x80\x02K\x01}b.", "state of a int"),
    "a tensor of torch.save": (b"\x80\x02ctorch._utils\n_rebuild_tensor\n.", "imports torch"),
    "a storage": (b"\x80\x02K\x01Q.", "persistent"),
    "a list": (pickle.dumps([X]), "holds a list"),
    "nothing": (b"\x80\x04.", "empty"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_is_not_an_array_or_plain_value_is_refused(load, kind):
    content, message = REFUSED[kind]

    with pytest.raises(ValueError, match=rf"given\.pkl .*{message}"):
        load(content)


GIGABYTES = struct.pack("<Q", 2**33)
# A list of a string of 1 MB, for calls that each make bytes or an array of it.
MEGABYTE = b"\x80\x02]X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x00a"
FROM_BUFFER = b"cnumpy.core.numeric\n_frombuffer\nq\x01acnumpy\ndtype\nU\x02u1\x89\x88\x87Rq\x02a"
PAIRS = b"](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(50_000)) + b"e"
BOMBS = {
    "long string": (b"\x80\x04\x8d" + GIGABYTES + b"abc.", "remain"),
    "long bytes": (b"\x80\x04\x8e" + GIGABYTES + b"abc.", "remain"),
    "long byte array": (b"\x80\x05\x96" + GIGABYTES + b"abc.", "remain"),
    "many bytes from one string": (
        MEGABYTE + b"c_codecs\nencode\nq\x01a" + b"h\x01h\x00U\x06latin1\x86Ra" * 4000 + b".",
        "larger than the file",
    ),
    "many arrays from one string": (
        MEGABYTE + FROM_BUFFER + b"h\x01(h\x00h\x02J\x00\x00\x10\x00\x85U\x01CtRa" * 4000 + b".",
        "larger than the file",
    ),
    "many dicts from one list": (
        b"\x80\x02](" + PAIRS + b"q\x00ccollections\nOrderedDict\nq\x01e"
        b"(" + b"h\x01h\x00\x85R" * 4000 + b"e.",
        "holds a list",
    ),
    "many lists in one dict": (
        b"\x80\x02](" + PAIRS + b"q\x00e](" + b"h\x00" * 4000 + b"eq\x01\x85"
        b"q\x02ccollections\nOrderedDict\nh\x02R.",
        "other than pairs",
    ),
    "text of nested lists": (
        b"\x80\x02]q\x00"
        + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
        + b"c_codecs\nencode\nU\x01xh\x3c\x86R.",
        "a list, expected latin1",
    ),
    "many long keys": (
        b"\x80\x02](" + b"N" * 100_000 + b"tq\x00a}" + b"h\x00Ns" * 100_000 + b".",
        "key of a dict",
    ),
    "large shape": (python_2(SHORT + bytes(24), shape=b"J\xff\xff\xff\x7fK\x03\x86"), "shape"),
    "large empty shape": (
        python_2(b"U\x00", shape=b"(K\x00" + b"J\xff\xff\xff\x7f" * 3 + b"t"),
        "",
    ),
}


@pytest.mark.parametrize("kind", list(BOMBS))
def test_a_small_file_never_becomes_large_arrays(load, kind):
    content, message = BOMBS[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    try:
        loaded = load(content)
    except ValueError as error:
        assert "given.pkl" in str(error) and message in str(error)
    else:
        assert not message and loaded["blobs"]["conv1_w"].numel() == 0

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 128 * 1024


def test_tensors_of_the_file_can_be_changed(load):
    """Bytes of Python are immutable; training in place must not write to them."""
    file = io.BytesIO()
    pickle.dump({"x": X, "y": X.copy()}, file, protocol=3)

    given = load(file.getvalue())
    given["x"].fill_(7)

    assert torch.equal(given["y"], torch.from_numpy(X))
