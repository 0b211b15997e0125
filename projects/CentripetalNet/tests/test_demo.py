"""The demo draws detections into images and videos."""

import itertools
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


@pytest.fixture(autouse=True)
def no_log(monkeypatch):
    """Without this, later tests would log to a stream that is closed."""
    monkeypatch.setattr(demo, "setup_logger", lambda **_: None)


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
        try:
            status = demo.main(arguments(*args))
        except SystemExit as exit:
            status = exit.code
        return (status, *capsys.readouterr())

    return run


def test_every_image_is_drawn_and_the_input_is_not_changed(run, pictures, tmp_path):
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}

    status, out, err = run(
        *("--input", pictures / "*.png", pictures / "wide [1].jpg"), "--output", tmp_path / "out"
    )

    assert status == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(before)
    drawn = cv2.imread(str(tmp_path / "out" / "grey.png"))
    assert drawn.shape == (50, 70, 3)
    run("--input", pictures / "grey.png", "--output", tmp_path, "--confidence-threshold", 1)
    assert (drawn != cv2.imread(str(tmp_path / "grey.png"))).any()
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before
    assert len(re.findall(r"detected \d+ objects", out)) == 3
    assert "3/3" in err and "images/s" in err


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


def test_an_unreadable_image_is_named_and_the_others_are_drawn(run, pictures, tmp_path):
    (pictures / "bad.png").write_text("no picture")

    status, _, err = run("--input", pictures, "--output", tmp_path / "out")

    assert status == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"grey.png", "one.png", "wide [1].jpg"}
    end = err[err.index("error: 1 of 4 images were not drawn:") :]
    assert f"{pictures / 'bad.png'} cannot be read as an image" in end


def test_every_frame_of_a_video_is_drawn(run, tmp_path):
    source = tmp_path / "video.avi"
    squares = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    frames = [cv2.resize(x, (64, 48), interpolation=cv2.INTER_NEAREST) for x in squares]
    write_video(str(source), frames, 12.5, (64, 48))
    before = source.read_bytes()

    status, out, err = run("--video-input", source, "--output", tmp_path / "out")
    run("--video-input", source, "--output", tmp_path / "plain.avi", "--confidence-threshold", 1)

    assert status == 0, err
    assert "5 frames" in out and "5/5" in err and "images/s" in err
    assert source.read_bytes() == before
    videos = [Video(str(tmp_path / x)) for x in ("video.avi", "plain.avi", "out/video.mp4")]
    assert all((x.size, x.rate, x.num_frames) == ((64, 48), 12.5, 5) for x in videos)
    for given, without, drawn in zip(*videos):
        # Detectron2 draws images with Matplotlib, which shifts some pixels.
        assert np.median(abs(without.astype(int) - given)) < 20
        assert abs(drawn.astype(int) - without).max() > 100


def test_a_video_with_fewer_frames_than_in_its_header_is_a_warning(run, tmp_path, monkeypatch):
    class Short:
        size, rate, num_frames = (64, 48), 25.0, 3

        def __init__(self, source):
            pass

        def __iter__(self):
            return iter([np.zeros((48, 64, 3), np.uint8)] * 2)

    monkeypatch.setattr(demo, "Video", Short)
    (tmp_path / "short.avi").touch()

    status, _, err = run("--video-input", tmp_path / "short.avi", "--output", tmp_path)

    assert status == 0
    assert "short.avi: 2 of the 3 frames in its header could be read" in err


def test_options_reach_the_model(arguments):
    def model(*options):
        args = arguments("--input", "x", *options)
        return demo.predictor_of(demo.get_parser().parse_args(args)).model

    assert isinstance(model("--tta"), CentripetalNetWithTTA)
    plain = model("--device", "cpu", "--precision", "bfloat16")
    assert not isinstance(plain, CentripetalNetWithTTA)
    assert str(next(plain.backbone.parameters()).dtype) == "torch.bfloat16"


@pytest.mark.parametrize(
    "options, status, message",
    [
        (["--input", "x", "--video-input", "y"], 2, "not allowed with argument"),
        (["--webcam", "--output", "x"], 2, "--webcam is shown in a window"),
        (["--input", "x", "--confidence-threshold", "7"], 2, "is 7.0; expected 0 to 1"),
        (["--input", "no.png", "--output", "out"], 1, "no.png: there is no such file"),
        (["--input", "{pictures}/one.png", "--output", "{pictures}"], 1, "would overwrite"),
        (["--video-input", "no.mp4", "--output", "out"], 1, "no.mp4 has no readable frame"),
        (["--input", "{pictures}", "--output", "x", "--device", "gpu"], 1, "device is 'gpu'"),
        (["--input", "{pictures}", "--output", "x", "--config-file", "x"], 1, "centripetal_hg104"),
        (["--input", "{pictures}", "--output", "x.png"], 1, "there are 3 images; name a folder"),
    ],
)
def test_invalid_options_print_one_line(run, pictures, monkeypatch, options, status, message):
    monkeypatch.chdir(pictures.parent)

    result = run(*(x.format(pictures=pictures) for x in options))

    assert result[0] == status
    assert message in result[2].splitlines()[-1]


@pytest.mark.parametrize("source", [["--input", "{pictures}"], ["--video-input", "x"]])
@pytest.mark.parametrize("display", [None, ":0"])
def test_without_a_window_the_error_names_output(run, pictures, monkeypatch, source, display):
    def fail(*_):
        raise cv2.error("not implemented")

    monkeypatch.setattr(demo.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(demo.cv2, "namedWindow", fail)

    status, _, err = run(*(x.format(pictures=pictures) for x in source))

    assert status == 1
    assert ("no display" if display is None else "without windows") in err
    assert "Use --output FOLDER" in err


@pytest.fixture
def window(monkeypatch):
    """The shapes of the images in the window; Escape is pressed after the second."""
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(demo.cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(demo.cv2, "imshow", lambda name, image: shown.append(image.shape))
    monkeypatch.setattr(demo.cv2, "waitKey", lambda _: 27 if len(shown) == 2 else 255)
    return shown


def test_images_are_shown_until_escape(run, pictures, window):
    status, _, err = run("--input", pictures)

    assert status == 0, err
    assert window == [(50, 70, 3), (1, 1, 3)]


def test_the_camera_is_shown_until_escape(run, window, monkeypatch):
    class Camera:
        size, num_frames = (64, 48), None

        def __init__(self, source):
            assert source == 0

        def __iter__(self):
            return itertools.repeat(np.zeros((48, 64, 3), np.uint8))

    monkeypatch.setattr(demo, "Video", Camera)

    status, _, err = run("--webcam")

    assert status == 0, err
    assert window == [(48, 64, 3)] * 2
