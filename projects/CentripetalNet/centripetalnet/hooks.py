"""Hooks of the trainer."""

import logging
import math

from detectron2.engine import HookBase, hooks

logger = logging.getLogger(__name__)


class TrainingPlotter(HookBase):
    """Draws the curves of a training that has come to its end into its folder, training.png."""

    def __init__(self, output_dir: str):
        """
        Args:
            output_dir: where Detectron2's JSONWriter has its metrics.json.
        """
        self.output_dir = output_dir

    def after_train(self) -> None:
        """A picture that cannot be drawn is only a warning: the training is done."""
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        try:
            # It imports matplotlib, which only drawing needs.
            from .visualization import plot_training

            logger.info("Curves of the training: %s", plot_training(self.output_dir))
        # Whatever it is, a training that took days must not end as if it had failed.
        except Exception as error:
            logger.warning("The curves of the training were not drawn: %s", error)


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, which after an interruption still knows the best result so far."""

    def state_dict(self) -> dict:
        """For a checkpoint; that of the best model itself knows its own result."""
        metric, iteration = self.best_metric, self.best_iter
        latest, when = self.trainer.storage.latest().get(self._val_metric, (math.nan, None))
        if math.isfinite(latest) and (metric is None or self._compare(latest, metric)):
            metric, iteration = latest, when
        # A plain number: NumPy's are not loaded from a checkpoint.
        return {"best_metric": None if metric is None else float(metric), "best_iter": iteration}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
