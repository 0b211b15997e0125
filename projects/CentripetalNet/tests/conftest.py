"""Fixtures that several test files share."""

import importlib.util
import json
import logging
import math
import zlib
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from exporting import ANYWHERE
from few_images import FEW
from remote_files import FolderAsStore

from centripetalnet import export
from centripetalnet.checkpoint.names import mmdet_name, translation
from centripetalnet.data import load_config
from centripetalnet.data.datasets import build_silhouettes, register_silhouettes

# On GPUs PyTorch convolves float32 in TF32 by default, with three decimal digits.
torch.backends.cudnn.allow_tf32 = False

PROJECT = Path(__file__).resolve().parents[1]
CONFIGS = PROJECT / "configs"

# The narrow model of data/model_tiny.pt.
GOLDEN_MODEL = {
    "MODEL.HOURGLASS.STEM_CHANNELS": 8,
    "MODEL.HOURGLASS.CHANNELS": [16, 16, 24],
    "MODEL.HOURGLASS.BLOCKS": [1, 1, 2],
    "MODEL.HOURGLASS.OUT_CHANNELS": 16,
    "MODEL.CENTRIPETALNET.NUM_CLASSES": 5,
}
# Those of data/cornernet_model.pt are the same, with embeddings.
EMBEDDINGS = {"MODEL.CENTRIPETALNET.MATCHING": "EmbeddingMatching"}
# Options of commands for its config.
GOLDEN_OPTIONS = ["--config-file", "centripetal_hg104", "--opts"]
GOLDEN_OPTIONS += [str(x) for item in GOLDEN_MODEL.items() for x in item]


def config(name: str = "centripetal_hg104", **changes) -> CfgNode:
    """A config on the CPU; keys of ``changes`` have "__" for "."."""
    opts = ["MODEL.DEVICE", "cpu"]
    for key, value in changes.items():
        opts += [key.replace("__", "."), value]
    return load_config(str(CONFIGS / f"{name}.yaml"), opts)


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, height, width) noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def golden_config(**changes) -> CfgNode:
    changes = {**GOLDEN_MODEL, **changes}
    return config(**{key.replace(".", "__"): value for key, value in changes.items()})


def rounding(operations: float, dtype: torch.dtype = torch.float32) -> float:
    """Bound of the relative difference of two results of this many roundings.

    Each result is off by at most half a unit in the last place for each rounding.
    """
    return operations * torch.finfo(dtype).eps


_STAGES = ["res2", "res3", "res4", "res5"]
# Small detectors by backbone, as changes to Base-CentripetalNet.yaml. The network of timm pads as
# TensorFlow does.
SMALL = {
    "hourglass": {
        "MODEL__HOURGLASS__NUM_STACKS": 1,
        "MODEL__HOURGLASS__STEM_CHANNELS": 4,
        "MODEL__HOURGLASS__CHANNELS": [8, 8, 12],
        "MODEL__HOURGLASS__BLOCKS": [1, 1, 1],
        "MODEL__HOURGLASS__OUT_CHANNELS": 16,
    },
    "resnet": {
        "MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone",
        "MODEL__RESNETS__DEPTH": 18,
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
        "MODEL__RESNETS__NORM": "BN",
        "MODEL__RESNETS__OUT_FEATURES": _STAGES,
        "MODEL__FPN__IN_FEATURES": _STAGES,
        "MODEL__FPN__OUT_CHANNELS": 16,
        "MODEL__CENTRIPETALNET__IN_FEATURES": ["p2"],
    },
    "timm": {
        "MODEL__BACKBONE__NAME": "build_timm_fpn_backbone",
        "MODEL__TIMM__NAME": "tf_mobilenetv3_small_minimal_100",
        "MODEL__FPN__OUT_CHANNELS": 16,
        "MODEL__CENTRIPETALNET__IN_FEATURES": ["p2"],
    },
}
# Small detectors by way of matching and convolution, on the hourglass.
_NET = "MODEL__CENTRIPETALNET__"
SMALL.update(
    {
        "embedding": {**SMALL["hourglass"], f"{_NET}MATCHING": "EmbeddingMatching"},
        "deformable": {**SMALL["hourglass"], f"{_NET}SHIFT_CONV": "deformable"},
        "plain": {
            **SMALL["hourglass"],
            f"{_NET}SHIFT_CONV": "plain",
            f"{_NET}GUIDING_SHIFT": False,
        },
    }
)
SMALL_HEAD = {
    "MODEL__CENTRIPETALNET__NUM_CLASSES": 2,
    "MODEL__CENTRIPETALNET__POOL_CHANNELS": 8,
    "MODEL__CENTRIPETALNET__HEAD_CHANNELS": 8,
}
# Hourglass-104 with few channels, as changes to its config.
NARROW_104 = {
    "MODEL__HOURGLASS__STEM_CHANNELS": 4,
    "MODEL__HOURGLASS__CHANNELS": [8, 8, 12, 12, 12, 16],
    "MODEL__HOURGLASS__OUT_CHANNELS": 8,
    **SMALL_HEAD,
}
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
_OTHERS = ["resnet", pytest.param("timm", marks=needs_timm)]
_VARIANTS = ["embedding", "deformable", "plain"]
each_detector = pytest.mark.parametrize("detector", ["hourglass", *_OTHERS, *_VARIANTS])
other_detectors = pytest.mark.parametrize("detector", [*_OTHERS, *_VARIANTS])
other_backbones = pytest.mark.parametrize("backbone", _OTHERS)


def small_config(detector: str, **changes) -> CfgNode:
    """Of a small detector of ``SMALL``."""
    return config("Base-CentripetalNet", **{**SMALL[detector], **SMALL_HEAD, **changes})


@torch.no_grad()
def calibrate(model: torch.nn.Module, canvas: torch.Tensor) -> None:
    """Gives the norms of a new detector the statistics of these images."""
    norms = [x for x in model.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    features = model.backbone(canvas)
    for name, head in zip(model.feature_names, model.heads):
        head(features[name])
    for norm in norms:
        norm.momentum = 0.1
        # The statistics are of one batch. Without a margin, features of other sizes explode.
        norm.running_var *= 1.5


def finding_detector(detector: str, **changes) -> torch.nn.Module:
    """A small detector, not trained, that finds boxes of two classes in noise."""
    torch.manual_seed(0)
    model = build_model(small_config(detector, **changes))
    calibrate(model, torch.randn(4, 3, 256, 256))
    for branch in (model.heads[-1].tl, model.heads[-1].br):
        branch.heatmap[-1].weight.data *= 4
        if detector != "embedding":
            branch.centripetal_shift[-1].bias.data[:] = math.log(4)
    return model.eval()


_STORE = FolderAsStore()
PathManager.register_handler(_STORE)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The folder behind ``test-store://``. The test must not write to its working directory."""
    for name in ("folder", "copies", "here"):
        (tmp_path / name).mkdir()
    _STORE.folder, _STORE.copies = tmp_path / "folder", tmp_path / "copies"
    monkeypatch.chdir(tmp_path / "here")
    yield _STORE.folder
    assert not list((tmp_path / "here").iterdir())


@pytest.fixture(autouse=True)
def _logs_reach_caplog():
    """pytest before 9 reads the root logger only, from which trainings disconnect this one."""
    logging.getLogger("centripetalnet").propagate = True


@pytest.fixture(
    scope="session",
    params=["cpu", pytest.param("cuda", marks=needs_gpu)],
)
def device(request):
    """Every available device."""
    return request.param


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A few images instead of the complete dataset, here and in train_few.py."""
    root = tmp_path_factory.mktemp("datasets")
    build_silhouettes(str(root / "silhouettes"), FEW)
    register_silhouettes(str(root / "silhouettes"), FEW)
    yield root
    register_silhouettes()


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A folder with config.yaml and model.pth of an untrained detector with masks.

    Its corners have high scores, and its thresholds accept almost any pair of corners.
    """
    folder = tmp_path_factory.mktemp("untrained")
    (folder / "config.yaml").write_text(f"""
_BASE_: "{CONFIGS / "quick_schedules" / "centripetal_mask_tiny.yaml"}"
MODEL:
  CENTRIPETALNET:
    HEATMAP_BIAS: 3.0
    CENTRAL_REGION_LARGE: 9.0
    CENTRAL_REGION_SMALL: 9.0
    MAX_CENTER_AREA: 9.0
""")
    torch.manual_seed(0)
    model = build_model(load_config(str(folder / "config.yaml"), ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture(scope="session")
def opcheck():
    """Checks that schema, autograd, meta kernel and compilation of an operator agree."""
    try:
        from torch.library import opcheck
    except ImportError:  # torch < 2.4
        # Here, as the import takes seconds.
        from torch.testing._internal.optests import opcheck

        # The import disables setting flags such as cudnn.benchmark in the process, as trainers do.
        torch.backends.__allow_nonbracketed_mutation_flag = True
    return opcheck


@pytest.fixture(scope="session")
def golden():
    """Reads a file of data/ by name."""

    def read(name: str):
        path = PROJECT / "tests" / "data" / name
        if path.suffix == ".json":
            return json.loads(path.read_text())
        return torch.load(path, weights_only=True)

    return read


def weight_from_name(name: str, shape, seed: int) -> torch.Tensor:
    """The value of the reference's weight of this name; see data/README.md."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)

    def uniform(low, high):
        return low + (high - low) * torch.rand(shape, generator=generator)

    last_of_branch = name.split(".")[-3:-1] == ["1", "conv"]
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_mean"):
        return uniform(-0.2, 0.2)
    if name.endswith("running_var"):
        return uniform(0.5, 1.5)
    if len(shape) == 1 and name.endswith("bias"):
        if last_of_branch and "heat" in name:
            return uniform(-0.1, 0.1) - 2.19
        if last_of_branch and "centripetal_shift" in name:
            return uniform(-0.1, 0.1) + math.log(5)
        return uniform(-0.3, 0.3)
    if len(shape) == 1:
        return uniform(0.5, 1.5)
    normal = torch.randn(shape, generator=generator)
    if "dcn_offset" in name:
        return normal * 0.1
    weight = normal * math.sqrt(0.5 / math.prod(shape[1:]))
    if last_of_branch and "heat" in name:
        return (weight - weight.mean(1, keepdim=True)) * 8
    if last_of_branch and "centripetal_shift" in name:
        return weight * 0.05
    return weight


def read_golden_model(golden, file: str, **changes) -> tuple[torch.nn.Module, dict]:
    """The narrow model with the reference's weights, and the reference's results for it."""
    numbers = golden(file)
    model = build_model(golden_config(**changes))
    ours = translation(model.state_dict(), mmdet_name)
    weights = {
        ours[name]: weight_from_name(name, tuple(shape), numbers["weight_seed"])
        for name, shape in numbers["weight_shapes"].items()
    }
    model.load_state_dict(weights, strict=True)
    return model, numbers


@pytest.fixture
def golden_model(golden):
    """See :func:`read_golden_model`."""
    return read_golden_model(golden, "model_tiny.pt")


@pytest.fixture
def golden_detector(golden_model):
    """The golden model with thresholds at which it finds boxes."""
    model = golden_model[0].eval()
    model.matching = ANYWHERE
    return model


@pytest.fixture
def onnx_file(golden_detector, tmp_path):
    """That model as ONNX."""
    path = tmp_path / "model.onnx"
    names = list("abcde")
    metadata = export.metadata_of(golden_detector, names, min_size_test=0, max_size_test=1333)
    export.export_onnx(golden_detector, str(path), metadata, opset=17)
    return path


@pytest.fixture
def save(tmp_path):
    def write(content, name="theirs.pth"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write
