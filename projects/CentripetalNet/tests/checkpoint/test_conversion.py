import re
import subprocess
import sys

import pytest
import torch
from conftest import EMBEDDINGS, GOLDEN_OPTIONS, PROJECT, config, golden_config, weight_from_name
from detectron2.modeling import build_model

from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.checkpoint.conversion import (
    convert_to_ours,
    convert_to_theirs,
    model_shapes,
)
from centripetalnet.checkpoint.names import cornernet_name, mmdet_name, paper_name, translation
from centripetalnet.checkpoint.safe_load import load_tensors
from centripetalnet.commands import convert

NAMES = {"mmdet": mmdet_name, "paper": paper_name}
# Of each detector the implementations that have it.
DETECTORS = [("mmdet", {}), ("paper", {}), ("mmdet", EMBEDDINGS), ("cornernet", EMBEDDINGS)]
CLASSES = ["cow", "bear", "cat", "dog", "bird"]
MMDET_CONFIG = """
model = dict(type='CornerNet')
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""


def random_weights(cfg, origin):
    """Weights of a config's model in another implementation's names."""
    shapes = model_shapes(cfg)
    names = translation(shapes, {**NAMES, "cornernet": cornernet_name}[origin])
    return {theirs: weight_from_name(theirs, shapes[ours], 0) for theirs, ours in names.items()}


@pytest.fixture
def cfg():
    return golden_config()


def ema_copies(weights):
    return {f"ema_{name.replace('.', '_')}": x + 1 for name, x in weights.items()}


FORMS = {
    "bare": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights},
    "with optimizer": lambda weights: {
        "meta": {"epoch": 210},
        "state_dict": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "module prefix": lambda weights: {
        "state_dict": {f"module.{name}": x for name, x in weights.items()}
    },
    "EMA copies": lambda weights: {"state_dict": {**weights, **ema_copies(weights)}},
}


@pytest.mark.parametrize("origin, changes", DETECTORS)
@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_checkpoint_is_converted_loaded_and_converted_back(
    save, tmp_path, origin, changes, form
):
    cfg = golden_config(**changes)
    theirs = random_weights(cfg, origin)

    converted = convert_to_ours(save(FORMS[form](theirs)), cfg)
    ours = save(converted.checkpoint(), "ours.pth")
    cfg.merge_from_list(converted.convention.options())
    model = build_model(cfg)
    CentripetalNetCheckpointer(model).load(ours)
    back, _ = convert_to_theirs(ours, cfg, origin)

    assert converted.origin == origin
    state = model.state_dict()
    assert all(torch.equal(state[name], x) for name, x in converted.weights.items())
    back = back.get("state_dict", back)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], x) for name, x in theirs.items())


@pytest.mark.parametrize("changes, origin", [(EMBEDDINGS, "paper"), ({}, "cornernet")])
def test_a_detector_that_the_other_code_lacks_is_refused(save, changes, origin):
    ours = save({"model": build_model(golden_config(**changes)).state_dict()})
    theirs = random_weights(golden_config(**(EMBEDDINGS if origin == "cornernet" else {})), origin)

    with pytest.raises(ValueError, match="no part like heads.*cornernet_hg104 CornerNet"):
        convert_to_theirs(ours, golden_config(**changes), origin)
    with pytest.raises(ValueError, match="no part like heads.*cornernet_hg104 CornerNet"):
        convert_to_ours(save(theirs), golden_config(**changes))


@pytest.mark.parametrize("origin", list(NAMES))
def test_files_may_be_safetensors(cfg, tmp_path, origin):
    theirs = random_weights(cfg, origin)
    names = ("theirs.safetensors", "ours.safetensors", "back.safetensors")
    source, ours, back = (str(tmp_path / x) for x in names)
    meta = {"CLASSES": CLASSES, "config": MMDET_CONFIG}
    convert.save({"state_dict": theirs, "meta": meta}, source)

    assert convert.main([source, ours, *GOLDEN_OPTIONS]) == 0
    assert convert.main([ours, back, "--to", origin, *GOLDEN_OPTIONS]) == 0

    model = build_model(cfg)
    CentripetalNetCheckpointer(model).load(ours)
    weights, state = load_tensors(ours)["model"], model.state_dict()
    assert all(torch.equal(state[name], x) for name, x in weights.items())
    content = load_tensors(back)
    assert content["meta"] == {"CLASSES": CLASSES}
    assert set(content["model"]) == set(theirs)
    assert all(torch.equal(content["model"][name], x) for name, x in theirs.items())


def test_parts_of_the_papers_release_may_lack_their_parent(cfg, save):
    theirs = random_weights(cfg, "paper")
    bare = {name.split(".", 1)[1]: x for name, x in theirs.items()}

    converted = convert_to_ours(save(bare), cfg)

    expected = convert_to_ours(save(theirs), cfg)
    assert all(torch.equal(converted.weights[x], expected.weights[x]) for x in expected.weights)


def test_classes_and_input_convention_are_converted(cfg, save):
    weights = random_weights(cfg, "mmdet")
    bgr = MMDET_CONFIG.replace("True", "False")

    named = convert_to_ours(
        save({"meta": {"CLASSES": tuple(CLASSES), "config": bgr}, "state_dict": weights}), cfg
    )
    newer = convert_to_ours(
        save(
            {
                "meta": {"dataset_meta": {"classes": tuple(CLASSES)}, "cfg": MMDET_CONFIG},
                "state_dict": weights,
            }
        ),
        cfg,
    )
    silent = convert_to_ours(save({"state_dict": weights}), cfg)

    assert named.classes == newer.classes == CLASSES and named.num_classes == 5
    assert (named.convention.input_format, newer.convention.input_format) == ("BGR", "RGB")
    assert named.convention.pixel_mean == (123.675, 116.28, 103.53)
    assert silent.classes is None and not silent.convention_is_from_file
    back, _ = convert_to_theirs(save(named.checkpoint()), cfg, "mmdet")
    assert back["meta"] == {"CLASSES": CLASSES}


def test_another_number_of_classes_than_the_configs_is_converted(cfg, save):
    weights = random_weights(cfg, "mmdet")
    cfg.MODEL.CENTRIPETALNET.NUM_CLASSES = 80

    assert convert_to_ours(save(weights), cfg).num_classes == 5


def test_weights_with_another_input_convention_are_refused_with_the_options(cfg, save):
    path = save(convert_to_ours(save(random_weights(cfg, "paper")), cfg).checkpoint(), "ours.pth")

    with pytest.raises(ValueError, match=r"INPUT\.FORMAT BGR MODEL\.PIXEL_MEAN \"\[103\.53"):
        CentripetalNetCheckpointer(build_model(cfg)).load(path)


def test_counters_that_old_files_lack_are_added(cfg, save):
    weights = random_weights(cfg, "paper")
    old = {name: x for name, x in weights.items() if "num_batches" not in name}

    converted = convert_to_ours(save(old), cfg)

    assert len(converted.added) == len(weights) - len(old) > 0
    assert all(converted.weights[name] == 0 for name in converted.added)


def test_all_tensors_that_do_not_fit_are_listed(cfg, save):
    weights = random_weights(cfg, "mmdet")
    del weights["backbone.stem.0.conv.weight"], weights["bbox_head.tl_off.1.1.conv.bias"]
    weights["bbox_head.br_heat.0.0.conv.bias"] = torch.zeros(3)
    weights["bbox_head.tl_emb.0.0.conv.weight"] = torch.zeros(1)

    with pytest.raises(ValueError) as error:
        convert_to_ours(save(weights), cfg)

    message = str(error.value)
    assert (
        "missing from the file (2):\n  backbone.stem.0.conv.weight\n  bbox_head.tl_off" in message
    )
    assert "bbox_head.br_heat.0.0.conv.bias: (3,) in the file, (256,) in the network" in message
    assert "not in the network (1):\n  bbox_head.tl_emb.0.0.conv.weight" in message


def test_tensors_may_be_left_out_by_name(cfg, save):
    weights = random_weights(cfg, "paper")
    weights["bbox_head.mid_conv_logits.weight"] = torch.zeros(1)

    converted = convert_to_ours(save(weights), cfg, drop="conv_logits")

    assert converted.left_out == ["bbox_head.mid_conv_logits.weight"]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, "holds no detector"),
        ({}, "holds no detector"),
        ([torch.zeros(1)], "holds a list"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(cfg, save, content, message):
    with pytest.raises(ValueError, match=message):
        convert_to_ours(save(content), cfg)


def test_duplicate_weights_are_refused(cfg, save):
    weights = random_weights(cfg, "mmdet")
    name = "bbox_head.tl_off.1.1.conv.bias"
    copies = {f"module.{x}": value for x, value in weights.items()}

    with pytest.raises(ValueError, match=f"weights of {name} twice"):
        convert_to_ours(save({**copies, name: weights[name] + 1}), cfg)


@pytest.mark.parametrize("shape", [(), (0,), (5, 1)])
@pytest.mark.parametrize("origin", ["mmdet", "centripetalnet"])
def test_a_heatmap_bias_of_a_wrong_shape_is_named(cfg, save, origin, shape):
    if origin == "mmdet":
        name, weights = "bbox_head.tl_heat.0.1.conv.bias", random_weights(cfg, "mmdet")
    else:
        name = "heads.0.tl.heatmap.1.bias"
        weights = {x: torch.zeros(y) for x, y in model_shapes(cfg).items()}
    path = save({**weights, name: torch.zeros(shape)})

    with pytest.raises(ValueError, match=rf"{name} has the shape .* expected \(classes,\)"):
        if origin == "mmdet":
            convert_to_ours(path, cfg)
        else:
            convert_to_theirs(path, cfg, "mmdet")


@pytest.mark.parametrize(
    "classes", [3, "abc", torch.ones(2), [["cat"]], ["cat", "x" * 1001], ["cat"] * 100_001]
)
def test_classes_that_are_not_a_list_of_names_are_left_out(cfg, save, classes):
    weights = {name: torch.zeros(shape) for name, shape in model_shapes(cfg).items()}

    theirs, _ = convert_to_theirs(
        save({"model": weights, "about": {"classes": classes}}), cfg, "paper"
    )

    assert theirs["meta"] == {}


def test_weights_of_mmdetection_are_refused_with_the_conversion_command(cfg, save):
    path = save({"state_dict": random_weights(cfg, "mmdet")})

    with pytest.raises(ValueError, match=r"centripetalnet-convert .*theirs\.pth"):
        CentripetalNetCheckpointer(build_model(cfg)).load(path)


def run_tool(*args):
    command = [sys.executable, PROJECT / "tools" / "convert_checkpoint.py", *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "origin, file, size",
    [
        ("mmdet", "centripetal_hg104", "1152 tensors, 205,883,932 values"),
        ("paper", "centripetal_hg104", "1152 tensors, 205,883,932 values"),
        ("cornernet", "cornernet_hg104", "1128 tensors, 201,161,088 values"),
    ],
)
def test_a_full_hourglass_104_is_converted_detects_and_is_converted_back(
    golden, tmp_path, origin, file, size
):
    released = {"centripetal_hg104": "centripetalnet", "cornernet_hg104": "cornernet"}[file]
    shapes = golden(f"mmdet_keys_{released}_hourglass104.json")
    if origin != "mmdet":
        ours = translation(model_shapes(config(file)), mmdet_name)
        other = {"paper": paper_name, "cornernet": cornernet_name}[origin]
        shapes = {other(ours[name], 2): shape for name, shape in shapes.items()}
    theirs = {name: weight_from_name(name, shape, 7) for name, shape in shapes.items()}
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")

    there = run_tool(tmp_path / "theirs.pth", tmp_path / "ours.pth", "--config-file", file)
    assert there.returncode == 0, there.stderr
    assert size in there.stdout
    options = re.search(r"input +(.*) \(", there.stdout).group(1)
    form = re.match(
        r"INPUT.FORMAT (\w+) MODEL.PIXEL_MEAN (\[.*\]) MODEL.PIXEL_STD (\[.*\])", options
    )
    keys = ("INPUT__FORMAT", "MODEL__PIXEL_MEAN", "MODEL__PIXEL_STD")
    model = build_model(config(file, **dict(zip(keys, form.groups())))).eval()
    CentripetalNetCheckpointer(model).load(str(tmp_path / "ours.pth"))
    with torch.no_grad():
        image = torch.randint(0, 256, (3, 100, 120), dtype=torch.uint8)
        instances = model([{"image": image}])[0]["instances"]
    names = ["--to", origin, "--config-file", file]
    back = run_tool(tmp_path / "ours.pth", tmp_path / "back.pth", *names)

    assert torch.isfinite(instances.scores).all()
    assert back.returncode == 0, back.stderr
    returned = torch.load(tmp_path / "back.pth", weights_only=True)
    returned = returned.get("state_dict", returned)
    assert set(returned) == set(theirs)
    assert all(torch.equal(returned[name], x) for name, x in theirs.items())
