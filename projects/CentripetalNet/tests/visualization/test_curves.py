import json

import cv2
import pytest

from centripetalnet.visualization import plot_training, read_metrics


def write(path, *lines):
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return str(path)


def losses(*pairs):
    return [{"iteration": i, "total_loss": value} for i, value in pairs]


def test_a_resumed_training_replaces_the_iterations_that_it_repeats(tmp_path):
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "bbox/AP": 10.0},
        *losses((19, 5.0), (39, 4.0), (59, 3.0), (79, 2.9)),
        # Killed, and resumed from iteration 40, with lines at other iterations.
        '{"iteration": 79, "tot\n',
        "17\n",
        *losses((49, 3.5), (69, 2.5)),
    )

    curves = read_metrics(path)

    assert curves["total_loss"] == {19: 5.0, 39: 4.0, 49: 3.5, 69: 2.5}
    assert curves["bbox/AP"] == {19: 10.0}


@pytest.mark.parametrize("content", ["", "no metrics\n", '{"total_loss": 1.0}\n'])
def test_a_file_without_metrics_is_an_error_that_names_it(tmp_path, content):
    path = write(tmp_path / "metrics.json", content)

    with pytest.raises(ValueError, match=r"metrics\.json contains no metrics"):
        read_metrics(path)


def test_the_figure_is_written_beside_the_metrics(tmp_path):
    write(tmp_path / "metrics.json", *losses((19, 5.0), (39, 4.0)))

    path = plot_training(str(tmp_path))

    assert path == str(tmp_path / "training.png")
    assert cv2.imread(path).shape[1] > 1000
    assert sorted(x.name for x in tmp_path.iterdir()) == ["metrics.json", "training.png"]
