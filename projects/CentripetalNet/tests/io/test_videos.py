"""Videos are read frame by frame, and written with the same number, size and rate of frames."""

import os

import numpy as np
import pytest

from centripetalnet.io import videos
from centripetalnet.io.videos import Video, write_video

SIZE = (64, 48)
NUM_FRAMES = 40


def frames(count=NUM_FRAMES):
    """Grey frames that get brighter."""
    for i in range(count):
        yield np.full((SIZE[1], SIZE[0], 3), 20 + 5 * i, np.uint8)


def number_of(frame):
    """The index of a frame; codecs darken frames by up to 4."""
    return round((frame.mean() - 18) / 5)


@pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf"), -1.0])
def test_without_a_header_the_rate_is_the_default_and_the_length_unknown(monkeypatch, rate):
    class Capture:
        def __init__(self, source):
            self.left = list(frames(2))

        def read(self):
            return (True, self.left.pop()) if self.left else (False, None)

        def get(self, key):
            return rate

    monkeypatch.setattr(videos.cv2, "VideoCapture", Capture)

    video = Video(0)

    assert (video.rate, video.num_frames, len(list(video))) == (30.0, None, 2)


def test_a_file_without_frames_is_an_error():
    with pytest.raises(OSError, match="no.mp4 has no readable frame"):
        Video("no.mp4")


@pytest.mark.parametrize("name", ["video.avi", "video.MP4"])
@pytest.mark.parametrize("rate", [25.0, 29.97])
def test_a_written_video_has_the_frames_size_and_rate(tmp_path, name, rate):
    path = str(tmp_path / "new" / name)

    assert write_video(path, frames(), rate, SIZE) == NUM_FRAMES

    assert os.listdir(tmp_path / "new") == [name]
    video = Video(path)
    assert (video.size, video.num_frames) == (SIZE, NUM_FRAMES)
    assert video.rate == pytest.approx(rate, abs=0.01)
    assert [number_of(frame) for frame in video] == list(range(NUM_FRAMES))


def test_odd_sizes_get_their_last_column_and_row_twice(tmp_path):
    path = str(tmp_path / "video.mp4")
    frame = np.zeros((51, 71, 3), np.uint8)
    frame[-1], frame[:, -1] = 200, 200

    write_video(path, [frame], 25.0, (71, 51))

    (read,) = Video(path)
    assert read.shape == (52, 72, 3)
    assert read[-2:].min() > 100 and read[:, -2:].min() > 100 and read[:-6, :-6].max() < 100


def test_frames_missing_in_the_written_file_are_an_error_that_leaves_no_file(tmp_path, monkeypatch):
    class Full:
        """Behaves like VideoWriter on a full disk."""

        def __init__(self, path, *_):
            open(path, "w").close()

        write, release = (lambda self, frame: None), (lambda self: None)

    monkeypatch.setattr(videos.cv2, "VideoWriter", Full)

    with pytest.raises(OSError, match="video.mp4: 40 frames were written, but the file has 0"):
        write_video(str(tmp_path / "video.mp4"), frames(), 25.0, SIZE)
    assert os.listdir(tmp_path) == []
