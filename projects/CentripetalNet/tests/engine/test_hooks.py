import math
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from centripetalnet.engine.hooks import BestCheckpointer, TrainingPlotter


class Saved:
    """A checkpointer that records the state of the hook at each save."""

    def __init__(self):
        self.states = []

    def save(self, name, **kwargs):
        self.states.append(self.hook.state_dict())


def hook_at(storage, iteration):
    checkpointer = Saved()
    hook = checkpointer.hook = BestCheckpointer(1, checkpointer, "bbox/AP")
    hook.trainer = SimpleNamespace(storage=storage, iter=iteration, max_iter=100)
    return hook, checkpointer


def evaluated(hook, storage, result):
    storage.put_scalar("bbox/AP", result, smoothing_hint=False)
    hook.after_step()


def test_after_a_resume_only_a_better_model_replaces_the_best():
    with EventStorage(5) as storage:
        hook, checkpointer = hook_at(storage, 5)
        evaluated(hook, storage, 40.0)
        evaluated(hook, storage, 30.0)
    state = hook.state_dict()

    with EventStorage(7) as storage:
        resumed, saved = hook_at(storage, 7)
        resumed.load_state_dict(state)
        for result in (35.0, 41.0):
            evaluated(resumed, storage, result)

    assert state == {"best_metric": 40.0, "best_iter": 5}
    # The checkpoint of the best model contains its own result.
    assert checkpointer.states == [state]
    assert saved.states == [{"best_metric": 41.0, "best_iter": 7}]


@pytest.mark.parametrize("result", [None, math.nan])
def test_without_a_result_there_is_no_best(result):
    with EventStorage(5) as storage:
        hook, _ = hook_at(storage, 5)
        if result is not None:
            storage.put_scalar("bbox/AP", result)

        assert hook.state_dict() == {"best_metric": None, "best_iter": None}


def finish(tmp_path, iteration=99):
    plotter = TrainingPlotter(str(tmp_path))
    plotter.trainer = SimpleNamespace(iter=iteration, max_iter=100)
    plotter.after_train()


def test_curves_are_drawn_at_the_end_of_a_training_and_not_before(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 99, "total_loss": 1.5}\n')

    finish(tmp_path, iteration=50)
    before = (tmp_path / "training.png").exists()
    finish(tmp_path)

    assert not before and (tmp_path / "training.png").exists()


def test_curves_that_cannot_be_drawn_are_only_a_warning(tmp_path, caplog):
    finish(tmp_path)

    assert "were not drawn" in caplog.text and "metrics.json" in caplog.text
