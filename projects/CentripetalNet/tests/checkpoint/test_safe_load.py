"""Contents of checkpoint files that are read, and those that are refused."""

import io
import json
import pickle
import re
import resource
import struct
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from centripetalnet.checkpoint.safe_load import as_safetensors, load_tensors

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
CONTENT = {
    "model": OrderedDict(weight=torch.arange(12.0).reshape(3, 4), count=torch.tensor(7)),
    "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"betas": (0.9, 0.999)}]},
    "odd": [nn.Parameter(torch.ones(2)), torch.arange(10)[2:8:3], torch.zeros(0, 3).t()],
    # Its strides are larger than its storage.
    "one value": torch.zeros(4, 6)[:1, :1].clone(),
    "kinds": [torch.ones(2).bfloat16(), torch.tensor([True, False]), torch.ones(1).half()],
    "plain": (None, True, -3, 2**40, 0.5, "\u00e4", torch.Size([2, 3])),
}


@pytest.fixture
def load(tmp_path):
    def load_bytes(content: bytes):
        (tmp_path / "given.pth").write_bytes(content)
        return load_tensors(str(tmp_path / "given.pth"))

    return load_bytes


def saved(content, form="zip"):
    file = io.BytesIO()
    torch.save(content, file, **FORMATS[form])
    return file.getvalue()


def assert_same(value, expected):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(value, expected) and value.dtype == expected.dtype
        assert value.stride() == expected.stride()
    elif isinstance(expected, dict):
        assert type(value) is type(expected) and list(value) == list(expected)
        for key in expected:
            assert_same(value[key], expected[key])
    elif isinstance(expected, (list, tuple)) and not isinstance(expected, torch.Size):
        assert type(value) is type(expected) and len(value) == len(expected)
        for pair in zip(value, expected):
            assert_same(*pair)
    else:
        assert value == expected


@pytest.mark.parametrize("form", list(FORMATS))
def test_files_of_torch_save_are_read_unchanged(load, form):
    assert_same(load(saved(CONTENT, form)), CONTENT)


def test_the_versions_of_modules_are_kept(load):
    weights = nn.BatchNorm2d(2).state_dict()

    assert load(saved(weights))._metadata == weights._metadata


@pytest.mark.parametrize("form", list(FORMATS))
def test_tensors_that_share_memory_share_it_after_loading(load, form):
    x = torch.zeros(4)

    content = load(saved({"whole": x, "part": x[2:]}, form))
    content["part"].fill_(1)

    assert content["whole"].tolist() == [0, 0, 1, 1]


class Rebuilt:
    """Pickles as a tensor with the given storage and shape."""

    def __init__(self, numel, offset, size, stride, key="0"):
        self.storage = Storage(numel, key)
        self.rest = (offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self.storage, *self.rest)


class Storage:
    def __init__(self, numel, key="0"):
        self.id = ("storage", torch.FloatStorage, key, "cpu", numel)


class Pickler(pickle.Pickler):
    extra = ()

    def persistent_id(self, x):
        return (*x.id, *self.extra) if isinstance(x, Storage) else None


class LegacyPickler(Pickler):
    extra = (None,)


def pickled(content, pickler=Pickler):
    file = io.BytesIO()
    pickler(file, protocol=2).dump(content)
    return file.getvalue()


def archive(content, stored=bytes(16), compression=zipfile.ZIP_STORED, **more):
    """A file as torch.save writes it; ``content`` may be a pickle."""
    content = content if isinstance(content, bytes) else pickled(content)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression, compresslevel=1) as target:
        records = {"data.pkl": content, "data/0": stored, "version": b"3\n", **more}
        for name, data in records.items():
            target.writestr(f"archive/{name}", data)
    return file.getvalue()


def legacy(content, stored):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(x, 2) for x in head]
    parts += [pickled(content, LegacyPickler), pickle.dumps(["0"], 2), stored]
    return b"".join(parts)


def test_the_unchanged_files_of_these_tests_are_valid(load):
    content = {"x": Rebuilt(4, 1, (3,), (1,))}
    values = struct.pack("<4f", 0, 1, 2, 3)

    for file in (archive(content, values), legacy(content, struct.pack("<q", 4) + values)):
        assert load(file)["x"].tolist() == [1, 2, 3]


def test_tensors_of_a_gpu_are_loaded_to_the_cpu(load):
    on_gpu = Storage(1)
    on_gpu.id = ("storage", torch.cuda.HalfStorage, "0", "cuda:3", 1)
    x = Rebuilt(1, 0, (1,), (1,))
    x.storage = on_gpu

    x = load(archive({"x": x}, bytes(2)))["x"]

    assert (x.device.type, x.dtype) == ("cpu", torch.float16)


GIGABYTES = 2**31
# An instruction for 2**2000.
LARGE = b"\x8a\xfb" + (2**2000).to_bytes(251, "little")


def with_size(instructions):
    """A pickle of a tensor whose size is the result of these instructions."""
    content, size = pickled({"x": Rebuilt(4, 0, (7777,), (1,))}), b"M\x61\x1e\x85"
    assert content.count(size) == 1
    return content.replace(size, instructions)


BOMBS = {
    "compressed storage": (
        lambda: archive(
            {"x": Rebuilt(2**26, 0, (2**26,), (1,))}, bytes(2**28), zipfile.ZIP_DEFLATED
        ),
        "compressed",
    ),
    "compressed pickle": (
        lambda: archive(bytes(2**28), compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "storage larger than its record": (
        lambda: archive({"x": Rebuilt(GIGABYTES, 0, (2,), (1,))}),
        "not of the size",
    ),
    "tensor larger than its storage": (
        lambda: archive({"x": Rebuilt(4, 0, (GIGABYTES,), (1,))}),
        "larger than its storage",
    ),
    "tensor repeating its storage": (
        lambda: archive({"x": Rebuilt(4, 0, (GIGABYTES,), (0,))}),
        "larger than its storage",
    ),
    "legacy storage larger than the file": (
        lambda: legacy({"x": Rebuilt(GIGABYTES, 0, (2,), (1,))}, struct.pack("<q", GIGABYTES)),
        "larger than the file",
    ),
    "many legacy storages": (
        lambda: legacy({i: Rebuilt(2**10, 0, (2,), (1,), str(i)) for i in range(100)}, b""),
        "larger than the file",
    ),
    "large products": (
        lambda: archive(with_size(b"(" + LARGE + b"q\xfa" + b"h\xfa" * 300_000 + b"t")),
        "tuple of sizes",
    ),
    "millions of objects": (
        lambda: archive(b"\x80\x02(" + b"]" * 2**25 + b"t."),
        "more instructions",
    ),
    "string larger than the pickle": (
        lambda: archive(b"\x80\x02X\xff\xff\xff\x7fabc."),
        "remain",
    ),
}


@pytest.mark.parametrize("kind", list(BOMBS))
def test_a_file_that_unpacks_to_gigabytes_is_refused_without_unpacking(load, kind):
    make, message = BOMBS[kind]
    file = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ValueError, match=rf"given\.pth .*{message}"):
        load(file)

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 128 * 1024


def test_a_record_that_claims_to_be_larger_than_the_file_is_refused(load):
    file = bytearray(archive({"x": Rebuilt(GIGABYTES // 8, 0, (2,), (1,))}))
    # Both sizes of data/0 in the central directory.
    place = file.rindex(b"PK\x01\x02") + 20
    file[place : place + 8] = struct.pack("<II", GIGABYTES // 2, GIGABYTES // 2)

    with pytest.raises(ValueError, match=r"given\.pth"):
        load(bytes(file))


X = pickled(Rebuilt(4, 0, (4,), (1,)))[:-1]
INSTRUCTIONS = {
    "items of a tensor": (X + b"K\x00K\x01s.", "sets items of a Tensor"),
    "many items of a tensor": (X + b"(K\x00K\x01u.", "sets items of a Tensor"),
    "items of a list": (b"\x80\x02]K\x00K\x01s.", "sets items of a list"),
    "append to a tensor": (X + b"K\x01a.", "appends to a Tensor"),
    "state of a tensor": (X + b"}b.", "sets the state of a Tensor"),
    "attributes of a dict": (
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb.",
        "sets the state of a OrderedDict",
    ),
    "tensor past its storage": (pickled(Rebuilt(4, 3, (2,), (1,))), "larger than its storage"),
    "tensor before its storage": (pickled(Rebuilt(4, -1, (2,), (1,))), "tuple of sizes"),
    "stride that overflows": (pickled(Rebuilt(4, 0, (2, 2), (2**62, 2**62))), "larger than"),
    "storage smaller than its record": (pickled(Rebuilt(3, 0, (2,), (1,))), "not of the size"),
    "negative storage": (pickled(Rebuilt(-4, 0, (2,), (1,))), "no size"),
    "storage that is not there": (pickled(Rebuilt(4, 0, (2,), (1,), "1")), "data/1"),
    "deep key": (b"\x80\x02}" + b"(" * 200_000 + b"t" * 200_000 + b"Ns.", "key of a dict"),
    "call of a value": (b"\x80\x02K\x01)R.", "no function"),
    "class": (b"\x80\x02cbuiltins\nexec\n.", "imports builtins.exec"),
    "empty stack": (b"\x80\x02.", "empty"),
    "no end": (b"\x80\x02N", "STOP"),
}


@pytest.mark.parametrize("kind", list(INSTRUCTIONS))
def test_a_pickle_with_more_than_tensors_and_plain_values_is_refused(load, kind):
    content, message = INSTRUCTIONS[kind]

    with pytest.raises(ValueError, match=rf"given\.pth .*{message}"):
        load(archive(content))


def test_a_duplicate_record_is_refused(load):
    with pytest.warns(UserWarning, match="Duplicate"), io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as target:
            for value in ({}, []):
                target.writestr("archive/data.pkl", pickled(value))
        content = file.getvalue()

    with pytest.raises(ValueError, match="not of torch.save"):
        load(content)


@pytest.mark.parametrize("form", list(FORMATS))
def test_a_file_of_another_byte_order_is_refused(load, form):
    if form == "zip":
        file = archive({}, byteorder=b"big")
    else:
        file = legacy({}, b"").replace(pickle.dumps(True, 2)[2:-1], pickle.dumps(False, 2)[2:-1])

    with pytest.raises(ValueError, match="byte order"):
        load(file)


def test_a_flipped_bit_in_the_weights_is_detected(load):
    file = bytearray(saved({"x": torch.ones(1000)}))
    file[file.index(struct.pack("<2f", 1, 1)) + 400] ^= 1

    with pytest.raises(ValueError, match="CRC"):
        load(bytes(file))


class Foreign:
    pass


def test_the_suggested_command_keeps_weights_and_meta(load, tmp_path):
    content = {"state_dict": {"x": torch.ones(2)}, "meta": {"CLASSES": ("cat", "dog")}}
    given, new = tmp_path / "given.pth", tmp_path / "new.pth"

    for kept in (content, {"state_dict": content["state_dict"]}):
        with pytest.raises(ValueError) as error:
            load(saved({**kept, "message_hub": Foreign()}))
        command = re.search(r"without them: (.*NEW\))", str(error.value)).group(1)
        exec(command, {"torch": torch, "PATH": given, "NEW": new})

        assert_same(load(new.read_bytes()), kept)


def test_a_tar_file_is_refused(load):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as target:
        for name, contents in {"storages": [0, []], "tensors": [0], "pickle": [{}]}.items():
            data = b"".join(pickle.dumps(x, 2) for x in contents)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))

    with pytest.raises(ValueError, match="not a checkpoint that can be loaded safely"):
        load(file.getvalue())


def test_safetensors_keep_weights_and_metadata(load):
    x = torch.arange(6.0).reshape(2, 3)
    content = {"state_dict": {"x": x, "same": x.t()}, "meta": {"CLASSES": ["cat", "dog"]}}

    given = load(as_safetensors(content))

    assert given["meta"] == content["meta"]
    assert torch.equal(given["model"]["x"], x) and torch.equal(given["model"]["same"], x.t())


def test_safetensors_with_foreign_metadata_are_read(load):
    header = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header["__metadata__"] = {"format": "pt", "about": "a model"}
    text = json.dumps(header).encode()

    given = load(struct.pack("<Q", len(text)) + text + struct.pack("<f", 2))

    assert given == {"model": {"x": torch.tensor([2.0])}}


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 2**40]},
        {"shape": [2**40]},
        {"shape": [-1]},
        {"dtype": "F999"},
        {"data_offsets": [-4, 0]},
    ],
)
def test_safetensors_with_an_invalid_header_are_named(load, changes):
    header = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}
    text = json.dumps(header).encode()

    with pytest.raises(ValueError, match=r"given\.pth is not a checkpoint"):
        load(struct.pack("<Q", len(text)) + text + bytes(4))
