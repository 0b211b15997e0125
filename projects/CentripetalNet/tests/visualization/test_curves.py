import json
import math

import cv2
import numpy as np
import pytest

from centripetalnet.visualization import plot_training, read_metrics
from centripetalnet.visualization.curves import curves_figure


def write(path, *lines):
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return str(path)


def losses(*pairs):
    return [{"iteration": i, "total_loss": value, "loss_heatmap": value / 2} for i, value in pairs]


def test_a_resumed_training_replaces_the_iterations_that_it_repeats(tmp_path):
    path = write(
        tmp_path / "metrics.json",
        *losses((19, 5.0), (39, 4.0), (59, 3.0), (79, 2.9)),
        # Killed, and resumed from iteration 40, with lines at other iterations.
        *losses((49, 3.5), (69, 2.5)),
    )

    iterations, values = read_metrics(path)["total_loss"]

    assert iterations == [19, 39, 49, 69]
    assert values == [5.0, 4.0, 3.5, 2.5]


def test_a_repeated_iteration_replaces_only_the_scalars_that_it_contains(tmp_path):
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 5.0, "bbox/AP": 10.0},
        {"iteration": 19, "total_loss": 4.0},
    )

    curves = read_metrics(path)

    assert curves["total_loss"] == ([19], [4.0])
    assert curves["bbox/AP"] == ([19], [10.0])


def test_an_incomplete_line_of_a_killed_training_is_skipped_with_a_warning(tmp_path, caplog):
    first, second = losses((19, 5.0), (39, 4.0))
    path = write(tmp_path / "metrics.json", first, '{"iteration": 39, "tot', "\n", second, "17\n")

    curves = read_metrics(path)

    assert curves["total_loss"] == ([19, 39], [5.0, 4.0])
    assert "line 2 is not a line of metrics" in caplog.text
    assert "line 4 is not a line of metrics" in caplog.text


@pytest.mark.parametrize("content", ["", "no metrics\n", '{"total_loss": 1.0}\n'])
def test_a_file_without_metrics_is_an_error_that_names_it(tmp_path, content):
    path = write(tmp_path / "metrics.json", content)

    with pytest.raises(ValueError, match=r"metrics\.json contains no metrics"):
        read_metrics(path)


def drawn(figure, panel):
    return {line.get_label(): line.get_xydata() for line in figure.axes[panel].lines}


def test_curves_have_gaps_where_values_are_nan_or_infinite():
    curves = {
        "total_loss": ([0, 1, 2], [2.0, math.inf, 1.0]),
        "loss_mask": ([0, 1, 2], [0.0, 0.5, math.nan]),
        "lr": ([0, 1, 2], [0.1, 0.2, 0.3]),
        "bbox/AP": ([2], [40.0]),
        "bbox/AP-cat": ([2], [50.0]),
        "my_val/bbox/AP": ([2], [30.0]),
        "my_val/bbox/AP-cat": ([2], [20.0]),
    }

    figure = curves_figure(curves)

    nan = math.nan
    losses, aps = drawn(figure, 0), drawn(figure, 2)
    np.testing.assert_equal(losses["total loss"], [[0, 2], [1, nan], [2, 1]])
    # A logarithmic axis cannot show zero.
    np.testing.assert_equal(losses["mask"], [[0, nan], [1, 0.5], [2, nan]])
    assert list(aps) == ["bbox AP", "my_val bbox AP"]


def test_a_long_curve_is_drawn_pale_under_its_median():
    values = np.ones(1000)
    values[500] = 100
    figure = curves_figure({"total_loss": (list(range(1000)), values.tolist())})

    raw, median = (line.get_ydata() for line in figure.axes[0].lines)

    assert raw.max() == 100 and median.max() == 1


def test_the_figure_is_written_beside_the_metrics(tmp_path):
    write(tmp_path / "metrics.json", *losses((19, 5.0), (39, 4.0)))

    path = plot_training(str(tmp_path))

    assert path == str(tmp_path / "training.png")
    assert cv2.imread(path).shape[1] > 1000
    assert sorted(x.name for x in tmp_path.iterdir()) == ["metrics.json", "training.png"]
