"""The demo draws detections into images and videos."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import PROJECT
from training import ENVIRONMENT

from centripetalnet.commands import demo
from centripetalnet.io.videos import Video, write_video
from centripetalnet.modeling import CentripetalNetWithTTA

# Most detections of an untrained detector have lower scores.
THRESHOLD = ["--confidence-threshold", "0.96"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    cv2.imwrite(str(folder / "grey.png"), grey)
    cv2.imwrite(str(folder / "one.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(folder / "wide [1].jpg"), np.zeros((20, 300, 3), np.uint8))
    return folder


@pytest.fixture
def video(tmp_path):
    squares = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    frames = [cv2.resize(x, (64, 48), interpolation=cv2.INTER_NEAREST) for x in squares]
    write_video(str(tmp_path / "video.avi"), frames, 12.5, (64, 48))
    return tmp_path / "video.avi"


@pytest.fixture
def arguments(untrained):
    """The command's arguments for an untrained model."""

    def arguments(*args):
        model = ["--config-file", untrained / "config.yaml", *THRESHOLD, *args]
        return [str(x) for x in [*model, "--opts", "MODEL.WEIGHTS", untrained / "model.pth"]]

    return arguments


@pytest.fixture
def run(arguments, capsys):
    """Calls the command; returns exit status, standard output and standard error."""

    def run(*args):
        return (demo.main(arguments(*args)), *capsys.readouterr())

    return run


def test_every_readable_image_is_drawn_and_the_others_are_named(run, pictures, tmp_path):
    names = {path.name for path in pictures.iterdir()}
    (pictures / "bad.png").write_text("no picture")

    status, out, err = run("--input", pictures, "--output", tmp_path / "out")
    run("--input", pictures / "grey.png", "--output", tmp_path, "--confidence-threshold", 1)

    assert status == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    drawn, plain = (cv2.imread(str(tmp_path / x)) for x in ("out/grey.png", "grey.png"))
    assert drawn.shape == (50, 70, 3) and (drawn != plain).any()
    assert len(re.findall(r"detected \d+ objects", out)) == 3
    bar, _, end = err.partition("error: 1 of 4 images were not drawn:")
    assert "4/4" in bar
    assert f"{pictures / 'bad.png'} cannot be read as an image" in end


def test_the_script_takes_a_list_on_standard_input(arguments, pictures, tmp_path):
    listed = "".join(f"{pictures / name}\n" for name in ("one.png", "wide [1].jpg"))
    command = [sys.executable, str(PROJECT / "demo" / "demo.py")]

    result = subprocess.run(
        command + arguments("--input", "-", "--output", tmp_path / "out"),
        input=listed,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )

    assert result.returncode == 0, result.stderr[-3000:]
    assert {x.name for x in (tmp_path / "out").iterdir()} == {"one.png", "wide [1].jpg"}


def test_every_frame_of_a_video_is_drawn(run, video, tmp_path):
    status, out, err = run("--video-input", video, "--output", tmp_path / "out")
    run("--video-input", video, "--output", tmp_path / "plain.avi", "--confidence-threshold", 1)

    assert status == 0, err
    assert "5 frames" in out and "5/5" in err
    videos = [Video(str(tmp_path / x)) for x in ("video.avi", "plain.avi", "out/video.mp4")]
    assert all((x.size, x.rate, x.num_frames) == ((64, 48), 12.5, 5) for x in videos)
    for given, without, drawn in zip(*videos):
        # Detectron2 draws images with Matplotlib, which shifts some pixels.
        assert np.median(abs(without.astype(int) - given)) < 20
        assert abs(drawn.astype(int) - without).max() > 100


def test_a_video_with_fewer_frames_than_in_its_header_is_a_warning(run, video, tmp_path):
    # The index and the last frames are missing.
    video.write_bytes(video.read_bytes()[:-2000])

    status, _, err = run("--video-input", video, "--output", tmp_path / "out")

    assert status == 0
    assert re.search(r"video.avi: [1-4] of the 5 frames in its header could be read", err)


def test_options_reach_the_model(arguments):
    def model(*options):
        args = arguments("--input", "x", *options)
        return demo.predictor_of(demo.get_parser().parse_args(args)).model

    assert isinstance(model("--tta"), CentripetalNetWithTTA)
    plain = model("--device", "cpu", "--precision", "bfloat16")
    assert not isinstance(plain, CentripetalNetWithTTA)
    assert str(next(plain.backbone.parameters()).dtype) == "torch.bfloat16"


@pytest.mark.parametrize(
    "options, message",
    [
        ("--webcam --output x", "--webcam is shown in a window"),
        ("--input x --confidence-threshold 7", "is 7.0; expected 0 to 1"),
        ("--input pictures/one.png --output pictures", "would overwrite pictures/one.png"),
        ("--video-input video.avi --output video.avi", "would overwrite video.avi"),
        ("--input pictures --output x --device gpu", "device is 'gpu'"),
    ],
)
def test_invalid_options_print_one_line(run, pictures, video, monkeypatch, options, message):
    monkeypatch.chdir(pictures.parent)

    status, _, err = run(*options.split())

    assert status == 1
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize("source", [["--input", "x"], ["--video-input", "x"], ["--webcam"]])
@pytest.mark.parametrize("display, problem", [("", "no display"), (":0", "without windows")])
def test_without_a_window_the_error_names_output(run, monkeypatch, source, display, problem):
    def fail(*_):
        raise cv2.error("not implemented")

    monkeypatch.setattr(demo.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(demo.cv2, "namedWindow", fail)

    status, _, err = run(*source)

    assert status == 1
    assert problem in err and "--output FOLDER" in err


@pytest.mark.parametrize("source", ["images", "camera"])
def test_images_and_the_camera_are_shown_until_escape(run, pictures, video, monkeypatch, source):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(demo.cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(demo.cv2, "imshow", lambda name, image: shown.append(image.shape))
    monkeypatch.setattr(demo.cv2, "waitKey", lambda _: 27 if len(shown) == 2 else 255)
    monkeypatch.setattr(demo, "CAMERA", str(video))

    status, _, err = run(*(["--webcam"] if source == "camera" else ["--input", pictures]))

    assert status == 0, err
    assert shown == ([(48, 64, 3)] * 2 if source == "camera" else [(50, 70, 3), (1, 1, 3)])
