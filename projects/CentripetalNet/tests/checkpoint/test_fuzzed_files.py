"""Damaged and generated checkpoint files, read by the loader, checkpointer and converter.

A file is read, or refused with an error that names it or the key. Its code is not executed and
nothing is written. --hypothesis-show-statistics counts the cases.
"""

import io
import pickle
import re
import tempfile
from collections import OrderedDict
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN_OPTIONS, golden_config
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn

from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.checkpoint.conversion import model_shapes
from centripetalnet.checkpoint.names import mmdet_name, paper_name, translation
from centripetalnet.checkpoint.safe_load import as_safetensors, load_tensors
from centripetalnet.commands import convert

REFUSALS = (ValueError, OSError)
# A message without the file has the key or all names that do not fit.
KEYS_NAMED = re.compile("weights|tensor|about|does not fit the model|another channel order")
FORMATS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "safetensors": {},
    # Pickles of NumPy arrays with the protocols 2, 4 and 5.
    **{"numpy 2": {}, "numpy 4": {}, "numpy 5": {}},
}
NAMES = {"mmdet": mmdet_name, "paper": paper_name}
ABOUT = {
    "origin": "mmdet",
    "classes": ["cat", "dog"],
    "input_format": "RGB",
    "pixel_mean": (1.0, 2.0, 3.0),
    "pixel_std": (1.0, 1.0, 1.0),
}
EXECUTED = []


class Explosive:
    """Unpickling it would execute code."""

    def __reduce__(self):
        return exec, (f"import {__name__} as tests; tests.EXECUTED.append(1)",)


class SmallModel(nn.Sequential):
    """Two layers with an input convention like the detector's."""

    def __init__(self):
        super().__init__(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.input_format = "RGB"
        self.register_buffer("pixel_mean", torch.tensor([1.0, 2.0, 3.0]), persistent=False)
        self.register_buffer("pixel_std", torch.ones(3), persistent=False)


def as_bytes(content, form="zip"):
    if form == "safetensors":
        return as_safetensors(content)
    if form.startswith("numpy"):
        key = "model" if "model" in content else "state_dict"
        arrays = {name: x.numpy() for name, x in content[key].items()}
        return pickle.dumps({**content, key: arrays, "__author__": "Detectron2"}, int(form[-1]))
    file = io.BytesIO()
    torch.save(content, file, **FORMATS[form])
    return file.getvalue()


@cache
def small_file(form):
    return as_bytes({"model": SmallModel().state_dict(), "about": ABOUT, "iteration": 3}, form)


@cache
def shapes():
    return model_shapes(golden_config())


def weights_named(names):
    """Weights of the right shapes."""
    count = torch.zeros((), dtype=torch.int64)
    ours = {x: x for x in shapes()} if names == "ours" else translation(shapes(), NAMES[names])
    return {
        name: count if name.endswith("num_batches_tracked") else torch.zeros(shapes()[x])
        for name, x in ours.items()
    }


@cache
def whole_file(names, form):
    return as_bytes({"state_dict": weights_named(names), "meta": {"CLASSES": list("abcde")}}, form)


def convert_file(source, destination, *options):
    """Runs the converter as on the command line, but raises errors."""
    arguments = [str(source), str(destination), *options, *GOLDEN_OPTIONS]
    convert.run(convert.get_parser().parse_args(arguments))


def read(what, path, call):
    """Whether the call succeeds; checks the message of a refusal."""
    try:
        call()
    except REFUSALS as error:
        assert path.name in str(error) or KEYS_NAMED.search(str(error)), error
        event(f"{what}: {type(error).__name__}")
        return False
    finally:
        assert not EXECUTED
    event(f"{what}: success")
    return True


def read_by_all(content: bytes, conversions=((), ("--to", "mmdet"))):
    """Reads a file with the loader, the checkpointer and the converter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.pth"
        path.write_bytes(content)
        read("load_tensors", path, lambda: load_tensors(str(path)))
        for strict in (True, False):
            checkpointer = CentripetalNetCheckpointer(SmallModel(), strict=strict)
            read("checkpointer", path, lambda c=checkpointer: c.load(str(path)))
        for options in conversions:
            destination = path.with_name("converted.pth")
            name = " ".join(("converter", *options))
            succeeded = read(name, path, lambda o=options, d=destination: convert_file(path, d, *o))
            left = sorted(x.name for x in path.parent.iterdir() if x != path)
            assert left == (["converted.pth"] if succeeded else [])
            for file in left:
                (path.parent / file).unlink()


@st.composite
def damage(draw):
    """Damages of a file: kind, position (0 to 1), length, byte."""
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(("flip", "overwrite", "delete", "insert", "truncate", "repeat")),
                st.floats(0, 1),
                st.one_of(st.integers(1, 8), st.integers(1, 400)),
                st.integers(0, 255),
            ),
            min_size=1,
            max_size=4,
        )
    )


def damaged(content: bytes, steps) -> bytes:
    for kind, place, length, byte in steps:
        event(f"damage: {kind}")
        start = int(place * len(content))
        piece = content[start : start + length]
        if kind == "flip":
            piece = bytes(x ^ (1 << byte % 8) for x in piece[:1]) + piece[1:]
        elif kind == "overwrite":
            piece = bytes([byte]) * len(piece)
        elif kind == "delete":
            piece = b""
        elif kind == "insert":
            content = content[:start] + bytes([byte]) * length + content[start:]
            continue
        elif kind == "truncate":
            return content[:start]
        else:
            piece = piece + piece
        content = content[:start] + piece + content[start + length :]
    return content


def odd_tensor(kind):
    """Tensors that are not ordinary weights."""
    with torch.no_grad():
        return {
            "0-d": torch.tensor(1.0),
            "empty": torch.zeros(0),
            "bool": torch.ones(3, dtype=torch.bool),
            "half": torch.ones(3, 2).half(),
            "integer": torch.ones(3, 2, dtype=torch.int64),
            "complex": torch.ones(3, 2, dtype=torch.complex64),
            "sparse": torch.eye(3, 2).to_sparse(),
            "CSR": torch.eye(3, 2).to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8),
            "meta": torch.zeros(3, 2, device="meta"),
            "parameter": nn.Parameter(torch.ones(3, 2)),
            "NaN": torch.full((3, 2), float("nan")),
            "large": torch.zeros(1).expand(3, 2**20),
            "7-d": torch.zeros(1, 1, 1, 1, 1, 1, 1),
        }[kind]


ODD_TENSORS = (
    "0-d empty bool half integer complex sparse CSR quantized meta parameter large 7-d"
).split() + ["NaN"]
KEYS = st.one_of(
    st.sampled_from(
        "model state_dict meta about optimizer iteration CLASSES classes dataset_meta config cfg "
        "input_format pixel_mean pixel_std matching_heuristics __author__ _metadata "
        "0.weight 0.bias module.0.weight 0..weight 1.num_batches_tracked ema_0.weight "
        "backbone.hourglass_modules.0.x hg_modules.0. module.heads.0.tl.heatmap. "
        "heads.0.tl.heatmap.1.bias bbox_head.tl_heat.0.1.conv.bias".split()
    ),
    st.integers(-1, 3),
    st.just(""),
    st.text(max_size=6),
    st.booleans(),
    st.none(),
    st.just((1, "a")),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(ODD_TENSORS).map(odd_tensor),
    st.builds(Explosive),
    st.sampled_from((b"bytes", (1, 2), [], {}, torch.Size([2]), torch.float32)),
    st.just("mean=[1,2,3], std=[0,0,0], to_rgb=True"),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=8,
)


def with_metadata(weights, metadata):
    """Weights as of ``nn.Module.state_dict``, with any value as module versions."""
    weights = OrderedDict(weights)
    weights._metadata = metadata
    return weights


@st.composite
def changed_checkpoints(draw, weights):
    """A valid checkpoint with a few changed entries."""
    about, meta = dict(ABOUT), {"CLASSES": list("abcde"), "config": "mean=[1]"}
    content = {draw(st.sampled_from(("model", "state_dict"))): weights, "about": about}
    content["meta"] = meta
    for place in draw(st.lists(st.sampled_from(("weights", "about", "meta", "top")), max_size=3)):
        event(f"changed: {place}")
        part = {"weights": weights, "about": about, "meta": meta, "top": content}[place]
        key = draw(st.sampled_from(sorted(map(str, part)))) if part and draw(st.booleans()) else ""
        if draw(st.booleans()):
            part.pop(key, None)
        key = draw(st.sampled_from((key, f"module.{key}", key.upper()))) or draw(KEYS)
        part[key] = draw(VALUES)
    if draw(st.integers(0, 4)) == 4:
        event("changed: metadata")
        metadata = draw(st.one_of(VALUES, st.dictionaries(st.sampled_from(("", "1")), VALUES)))
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), dict):
                content[key] = with_metadata(content[key], metadata)
    return content


def saved(content):
    """The bytes of a file, or None if PyTorch cannot write it."""
    try:
        return as_bytes(content)
    except (RuntimeError, NotImplementedError):
        return None


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
ignore_casts = pytest.mark.filterwarnings("ignore::UserWarning")


def check_damaged(form, steps):
    read_by_all(damaged(small_file(form), steps))


@pytest.mark.parametrize("form", list(FORMATS))
@settings(max_examples=60, **QUIET)
@given(steps=damage())
def test_a_damaged_file_is_read_or_refused_by_name(form, steps):
    check_damaged(form, steps)


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMATS))
@settings(max_examples=150, **QUIET)
@given(steps=damage())
def test_many_more_damaged_files_are_read_or_refused_by_name(form, steps):
    check_damaged(form, steps)


@pytest.mark.parametrize("form", list(FORMATS))
@settings(max_examples=10, **QUIET)
@given(steps=damage(), names=st.sampled_from(("mmdet", "paper", "ours")))
def test_a_damaged_file_of_a_full_network_is_read_or_refused_by_name(form, steps, names):
    read_by_all(damaged(whole_file(names, form), steps))


@ignore_casts
@settings(max_examples=100, **QUIET)
@given(content=VALUES)
def test_a_file_with_any_content_is_read_or_refused_by_name(content):
    file = saved(content)
    if file is not None:
        read_by_all(file)


@ignore_casts
@settings(max_examples=100, **QUIET)
@given(st.data())
def test_a_checkpoint_with_a_few_odd_entries_is_read_or_refused_by_name(data):
    file = saved(data.draw(changed_checkpoints(dict(SmallModel().state_dict()))))
    if file is not None:
        read_by_all(file)


@ignore_casts
@settings(max_examples=20, **QUIET)
@given(st.data(), st.sampled_from(("mmdet", "paper", "ours")))
def test_a_full_network_with_a_few_odd_entries_is_read_or_refused_by_name(data, names):
    file = saved(data.draw(changed_checkpoints(weights_named(names))))
    if file is not None:
        read_by_all(file, conversions=((), ("--to", "paper")) if names == "ours" else ((),))
