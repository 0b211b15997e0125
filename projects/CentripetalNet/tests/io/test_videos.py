"""Videos are read frame by frame, and written with the same number, size and rate of frames."""

import os

import cv2
import numpy as np
import pytest

from centripetalnet import videos
from centripetalnet.io.videos import Video, VideoFile, find_codec, find_output

SIZE = (64, 48)
NUM_FRAMES = 40


def frames(count=NUM_FRAMES, size=SIZE):
    """Grey frames that get brighter."""
    for i in range(count):
        yield np.full((size[1], size[0], 3), 20 + 5 * i, np.uint8)


def number_of(frame):
    """The index of a frame; codecs darken frames by up to 4."""
    return round((frame.mean() - 18) / 5)


def encode(path, codec, rate=25.0, size=SIZE, count=NUM_FRAMES):
    """Writes a video with OpenCV alone."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
    assert writer.isOpened()
    for frame in frames(count, size):
        writer.write(frame)
    writer.release()
    return str(path)


@pytest.mark.parametrize("name, codec", [("video.avi", "MJPG"), ("video.mp4", "mp4v")])
@pytest.mark.parametrize("rate", [25.0, 29.97, 12.5])
def test_frames_come_one_by_one_with_size_rate_and_number(tmp_path, name, codec, rate):
    path = encode(tmp_path / name, codec, rate)

    with Video(path) as video:
        read = [number_of(frame) for frame in video]

        assert (video.size, video.num_frames) == (SIZE, NUM_FRAMES)
        assert video.rate == pytest.approx(rate, abs=1e-3)
    assert read == list(range(NUM_FRAMES))


def test_a_missing_or_invalid_video_is_named(tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")

    with pytest.raises(FileNotFoundError, match="there is no video .*none.mp4"):
        Video(str(tmp_path / "none.mp4"))
    with pytest.raises(OSError, match="bad.mp4 has no readable frame"):
        Video(str(tmp_path / "bad.mp4"))


@pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf"), -1.0])
def test_without_a_header_the_rate_is_the_default_and_the_length_unknown(monkeypatch, rate):
    class Capture:
        def __init__(self, source):
            self.left = list(frames(2))

        def read(self):
            return (True, self.left.pop()) if self.left else (False, None)

        def get(self, key):
            return rate

        def release(self):
            pass

    monkeypatch.setattr(videos.cv2, "VideoCapture", Capture)

    with Video(0) as video:
        assert (video.rate, video.num_frames, len(list(video))) == (30.0, None, 2)


@pytest.mark.parametrize("extension", videos.WRITTEN_EXTENSIONS)
@pytest.mark.parametrize("rate", [25.0, 29.97])
def test_a_written_video_has_the_frames_size_and_rate(tmp_path, extension, rate):
    path = str(tmp_path / "new" / f"video{extension}")
    codec = find_codec(extension, rate, SIZE)

    with VideoFile(path, codec, rate, SIZE) as file:
        for frame in frames():
            assert not os.path.exists(path)
            file.write(frame)

    assert os.listdir(tmp_path / "new") == [f"video{extension}"]
    with Video(path) as video:
        read = [number_of(frame) for frame in video]
        assert (video.size, video.num_frames) == (SIZE, NUM_FRAMES)
        assert video.rate == pytest.approx(rate, abs=0.01)
    assert read == list(range(NUM_FRAMES))


def test_odd_sizes_get_their_last_column_and_row_twice(tmp_path):
    path = str(tmp_path / "video.mp4")
    frame = np.zeros((51, 71, 3), np.uint8)
    frame[-1], frame[:, -1] = 200, 200

    with VideoFile(path, find_codec(".mp4", 25.0, (71, 51)), 25.0, (71, 51)) as file:
        file.write(frame)

    with Video(path) as video:
        (read,) = video
    assert read.shape == (52, 72, 3)
    assert read[-2:].min() > 100 and read[:, -2:].min() > 100 and read[:-6, :-6].max() < 100


def test_a_frame_of_another_size_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="video.mp4: expected a frame of 64 x 48, got one of 48"):
        with VideoFile(str(tmp_path / "video.mp4"), "mp4v", 25.0, SIZE) as file:
            file.write(np.zeros((64, 48, 3), np.uint8))

    assert os.listdir(tmp_path) == []


def test_frames_missing_in_the_written_file_are_an_error(tmp_path, monkeypatch):
    file = VideoFile(str(tmp_path / "video.mp4"), "mp4v", 25.0, SIZE)

    class Full:
        """Behaves like VideoWriter on a full disk."""

        write, release = (lambda self, frame: None), file._writer.release

    file._writer.write(np.zeros((48, 64, 3), np.uint8))
    monkeypatch.setattr(file, "_writer", Full())

    with pytest.raises(OSError, match="video.mp4: 40 frames were written, but the file has 1"):
        with file:
            for frame in frames():
                file.write(frame)
    assert os.listdir(tmp_path) == []


def test_the_output_in_a_folder_is_an_mp4_with_the_name_of_the_video(tmp_path):
    source = encode(tmp_path / "my video.avi", "MJPG", count=2)

    assert find_output("out", source, 25.0, SIZE) == (os.path.join("out", "my video.mp4"), "mp4v")
    assert find_output("new.avi", source, 25.0, SIZE) == ("new.avi", "mp4v")


def test_if_mp4_cannot_be_written_the_output_is_an_avi(tmp_path, monkeypatch):
    source = encode(tmp_path / "video.mp4", "mp4v", count=2)
    writer = cv2.VideoWriter

    def without_ffmpeg(path, *arguments):
        return writer(path, cv2.CAP_OPENCV_MJPEG, *arguments)

    monkeypatch.setattr(videos.cv2, "VideoWriter", without_ffmpeg)

    path, codec = find_output(str(tmp_path), source, 25.0, SIZE)
    with VideoFile(path, codec, 25.0, SIZE) as file:
        for frame in frames():
            file.write(frame)

    assert (path, codec) == (str(tmp_path / "video.avi"), "MJPG")
    with Video(path) as video:
        assert (len(list(video)), video.size, video.rate) == (NUM_FRAMES, SIZE, 25.0)
    with pytest.raises(ValueError, match=r"new\.mp4: .* no video of 64 x 48 at 25 .*\.webm"):
        find_output("new.mp4", source, 25.0, SIZE)


@pytest.mark.parametrize(
    "output, message",
    [
        (".", "would overwrite video.mp4"),
        ("video.mp4", "would overwrite video.mp4"),
        ("link.mp4", "would overwrite video.mp4"),
        ("drawn.png", r"drawn.png: \.png cannot be written; expected one of \.mp4"),
    ],
)
def test_an_invalid_output_is_an_error(tmp_path, monkeypatch, output, message):
    monkeypatch.chdir(tmp_path)
    encode("video.mp4", "mp4v", count=2)
    os.symlink("video.mp4", "link.mp4")

    with pytest.raises(ValueError, match=message):
        find_output(output, "video.mp4", 25.0, SIZE)
