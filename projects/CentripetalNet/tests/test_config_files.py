"""Configs are found by path and by name, and checked."""

import re
import shutil

import pytest
from conftest import CONFIGS

from centripetalnet import config
from centripetalnet.config import check_device, check_values, find_config, packaged_configs
from centripetalnet.data import load_config

NAMES = ["centripetal_hg104", "centripetal_hg52", "centripetal_mask_hg104"]
NAMES += ["cornernet_hg104"]
NAMES += ["centripetal_R_50_FPN", "centripetal_mask_R_50_FPN", "own_data", "own_data_R_50"]
NAMES += ["centripetal_mask_lite0", "centripetal_mask_tiny", "centripetal_tiny"]


def test_every_config_except_the_base_is_found_by_name():
    assert sorted(packaged_configs()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_loads_what_its_path_loads(name):
    (path,) = CONFIGS.rglob(f"{name}.yaml")

    assert load_config(name) == load_config(str(path))


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    (tmp_path / "centripetal_tiny").write_text("SEED: 77\n")
    monkeypatch.chdir(tmp_path)

    assert load_config("centripetal_tiny").SEED == 77


def test_a_missing_path_is_not_resolved_as_a_name():
    with pytest.raises(FileNotFoundError, match=r"mine/centripetal_tiny\.yaml"):
        find_config("mine/centripetal_tiny.yaml")


def test_an_unknown_name_is_an_error_that_lists_the_names():
    with pytest.raises(FileNotFoundError, match="'hg104'.*one of these names") as error:
        load_config("hg104")
    assert str(error.value).partition("names: ")[2].split(", ") == list(packaged_configs())


@pytest.mark.parametrize(
    "key, value, instead",
    [
        ("INPUT.CROP.ENABLED", "True", "INPUT.CENTER_CROP_PAD"),
        ("MODEL.KEYPOINT_ON", "True", "keypoints"),
        ("MODEL.LOAD_PROPOSALS", "True", "proposals"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.CENTRIPETALNET.NUM_CLASSES"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5", "SOFT_NMS.MIN_SCORE"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.6", "SOFT_NMS"),
        ("TEST.AUG.MIN_SIZES", "(400, 500)", "TEST.AUG.SCALES"),
        ("TEST.AUG.MAX_SIZE", "1000", "TEST.AUG.SCALES"),
    ],
)
def test_a_key_of_detectron2_without_effect_is_refused(key, value, instead):
    with pytest.raises(ValueError, match=f"{re.escape(key)} .* no effect .*{instead}"):
        load_config("centripetal_tiny", [key, value])


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.HOURGLASS.NORM", "Foo"),
        ("MODEL.CENTRIPETALNET.NORM", "Foo"),
        ("MODEL.BACKBONE.NAME", "build_nothing"),
        ("MODEL.META_ARCHITECTURE", "Nothing"),
        ("MODEL.PIXEL_MEAN", "[1.0, 2.0]"),
        ("MODEL.PIXEL_STD", "[1.0, 2.0, 0.0]"),
        ("INPUT.FORMAT", "XYZ"),
        ("INPUT.CENTER_CROP_PAD.SIZE", "[0, 127]"),
        ("INPUT.CENTER_CROP_PAD.RATIOS", "[]"),
        ("DATALOADER.SAMPLER_TRAIN", "Foo"),
        ("SOLVER.LR_SCHEDULER_NAME", "Foo"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "foo"),
        ("SOLVER.AMP.PRECISION", "half"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("SOLVER.ACCUMULATE", "0"),
        ("SOLVER.PATIENCE", "-1"),
    ],
)
def test_an_invalid_value_is_an_error_with_key_and_value(key, value):
    with pytest.raises(ValueError, match=f"{re.escape(key)} is .*, expected "):
        check_values(load_config("centripetal_tiny", [key, value]))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.PATIENCE", 2], "PATIENCE is 2.*TEST.EVAL_PERIOD"),
        (["MODEL.EMA.ENABLED", True, "TEST.PRECISE_BN.ENABLED", True], "PRECISE_BN.*MODEL.EMA"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        check_values(load_config("centripetal_tiny", opts))


@pytest.mark.parametrize("name", NAMES)
def test_configs_of_the_package_have_valid_values_and_keep_three_checkpoints(name):
    cfg = load_config(name, ["MODEL.DEVICE", "cpu"])

    check_values(cfg)
    assert cfg.SOLVER.CHECKPOINTS_KEPT == 3


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'gpu', expected 'cpu' or 'cuda'"):
        check_device("gpu")


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGTHS", "model.pth"], "Non-existent key: MODEL.WEIGTHS"),
        (["MODEL.WEIGHTS"], r"KEY VALUE pairs: .*odd length: \['MODEL.WEIGHTS'\]"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
    ],
)
def test_invalid_options_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        load_config("centripetal_tiny", opts)


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL:\n  WEIGTHS: a", "Non-existent config key: MODEL.WEIGTHS"),
        ("MODEL:\n\tWEIGHTS: a", "not a config file in YAML: .*line 2"),
        ("SOLVER:\n  MAX_ITER: many", "MAX_ITER"),
        ("just words", "expected keys with values"),
        ("", "expected keys with values"),
    ],
)
def test_an_invalid_file_is_named(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)

    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(path))}.*{message}"):
        load_config(str(path))


def test_configs_in_the_package_come_before_those_next_to_it(tmp_path, monkeypatch):
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    shutil.copytree(CONFIGS, beside)
    monkeypatch.setattr(config, "_FOLDERS", (inside, beside))
    assert find_config("centripetal_tiny").startswith(str(beside))

    shutil.copytree(CONFIGS, inside)

    assert find_config("centripetal_tiny").startswith(str(inside))


def test_an_installation_without_configs_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "_FOLDERS", (tmp_path,))

    with pytest.raises(FileNotFoundError, match=re.escape("install it again")):
        find_config("centripetal_tiny")


def test_a_remote_config_is_read_with_its_base(remote):
    (remote / "configs").mkdir()
    (remote / "base.yaml").write_text("SEED: 7\nSOLVER:\n  MAX_ITER: 3\n")
    (remote / "configs" / "mine.yaml").write_text("_BASE_: ../base.yaml\nSEED: 8\n")

    cfg = load_config("test-store://configs/mine.yaml")

    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (8, 3)


@pytest.mark.parametrize("address", ["test-store://none.yaml", "https://example.org/none.yaml"])
def test_a_missing_remote_config_is_named(remote, address):
    with pytest.raises(FileNotFoundError, match=f"no config file '{address}'"):
        load_config(address)
