"""Conversion of the detectors that were trained here."""

import json

import pytest
import torch
from conftest import GOLDEN_OPTIONS, golden_config, other_backbones, small_config, weight_from_name
from detectron2.modeling import build_model

from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.checkpoint.conversion import convert_to_ours, model_shapes
from centripetalnet.checkpoint.safe_load import load_tensors
from centripetalnet.commands import convert

CLASSES = ["cow", "bear", "cat", "dog", "bird"]
ABOUT = {
    "origin": "mmdet",
    "classes": CLASSES,
    "input_format": "BGR",
    "pixel_mean": (1.0, 2.0, 3.0),
    "pixel_std": (4.0, 5.0, 6.0),
}


@pytest.fixture
def cfg():
    return golden_config()


def trained(cfg, **more):
    """A training checkpoint of this project."""
    shapes = model_shapes(cfg)
    weights = {name: weight_from_name(name, shape, 0) for name, shape in shapes.items()}
    return {"model": weights, "optimizer": {"state": {}}, "iteration": 7, **more}


@pytest.mark.parametrize("name", ["new.pth", "new.safetensors"])
def test_weights_and_about_of_a_trained_model_are_rewritten(cfg, save, tmp_path, capsys, name):
    content, new = trained(cfg, about=ABOUT), str(tmp_path / name)

    assert convert.main([save(content, "trained.pth"), new, *GOLDEN_OPTIONS]) == 0

    rewritten = load_tensors(new)
    assert not {"optimizer", "iteration"} & set(rewritten)
    assert json.loads(json.dumps(rewritten["about"])) == json.loads(json.dumps(ABOUT))
    assert set(rewritten["model"]) == set(content["model"])
    assert all(torch.equal(rewritten["model"][x], y) for x, y in content["model"].items())
    printed = capsys.readouterr().out
    assert f"{new}: {len(content['model'])} tensors" in printed
    assert "INPUT.FORMAT BGR MODEL.PIXEL_MEAN [1.0, 2.0, 3.0]" in printed
    assert "classes     5 (cow, bear, " in printed


@other_backbones
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_detector_with_another_backbone_is_rewritten_but_has_no_names_elsewhere(
    save, tmp_path, capsys, backbone, norm
):
    key = {"resnet": "MODEL__RESNETS__NORM", "timm": "MODEL__TIMM__NORM"}[backbone]
    cfg = small_config(backbone, **{key: norm})
    (tmp_path / "config.yaml").write_text(cfg.dump())
    options = ["--config-file", str(tmp_path / "config.yaml")]
    content, new = trained(cfg), str(tmp_path / "new.safetensors")

    assert convert.main([save(content), new, *options]) == 0

    rewritten = load_tensors(new)["model"]
    assert set(rewritten) == set(content["model"])
    assert all(torch.equal(rewritten[x], y) for x, y in content["model"].items())
    assert "names of this project" in capsys.readouterr().out
    CentripetalNetCheckpointer(build_model(cfg)).load(new)
    assert convert.main([new, str(tmp_path / "mmdet.pth"), "--to", "mmdet", *options]) == 1
    refused = capsys.readouterr().err
    assert (
        f"the hourglass only, and MODEL.BACKBONE.NAME of the config is build_{backbone}" in refused
    )


def test_a_trained_model_without_about_is_rewritten_without_it(cfg, save, tmp_path, capsys):
    new = str(tmp_path / "new.safetensors")

    assert convert.main([save(trained(cfg)), new, *GOLDEN_OPTIONS]) == 0

    assert set(load_tensors(new)) == {"model"}
    assert "input       not stated in SRC" in capsys.readouterr().out


@pytest.mark.parametrize(
    "about",
    [3, {"classes": CLASSES}, {**ABOUT, "pixel_std": 1}, {**ABOUT, "input_format": "x"}],
)
def test_a_trained_model_with_an_invalid_about_is_refused(cfg, save, about):
    with pytest.raises(ValueError, match=r"ours\.pth: 'about' is invalid, expected 'input_format'"):
        convert_to_ours(save(trained(cfg, about=about), "ours.pth"), cfg)


def test_a_trained_model_that_does_not_fit_the_config_is_refused(cfg, save):
    content = trained(cfg)
    content["model"]["more"] = torch.zeros(1)
    path = save(content, "ours.pth")

    with pytest.raises(ValueError, match=r"ours\.pth does not fit(.|\n)*network \(1\):\n  more"):
        convert_to_ours(path, cfg)

    assert convert_to_ours(path, cfg, drop="^more$").left_out == ["more"]


@pytest.mark.parametrize("target", ["mmdet", "paper"])
@pytest.mark.parametrize("about", [ABOUT, None])
def test_the_input_convention_is_printed_for_formats_without_it(
    cfg, save, tmp_path, capsys, target, about
):
    content = trained(cfg, **({"about": about} if about else {}))
    content["model"]["more"] = torch.zeros(1)
    new = str(tmp_path / "new.pth")

    command = [save(content), new, "--to", target, "--drop", "^more$", *GOLDEN_OPTIONS]
    assert convert.main(command) == 0

    printed = capsys.readouterr().out
    stated = "INPUT.FORMAT BGR MODEL.PIXEL_MEAN [1.0, 2.0, 3.0] MODEL.PIXEL_STD [4.0, 5.0, 6.0]"
    assert f"input       {stated if about else 'not stated in SRC'}" in printed
    assert "not in DST" in printed
    assert "left out    1: more" in printed
