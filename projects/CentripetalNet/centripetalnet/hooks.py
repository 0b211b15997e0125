"""Hooks of the trainer."""

import logging
import math

from detectron2.engine import HookBase, hooks

logger = logging.getLogger(__name__)


class TrainingPlotter(HookBase):
    """Draws the curves of a finished training to training.png in its folder."""

    def __init__(self, output_dir: str):
        """
        Args:
            output_dir: folder with the metrics.json of Detectron2's JSONWriter.
        """
        self.output_dir = output_dir

    def after_train(self) -> None:
        """Draws the curves; an error is only a warning, since the training is complete."""
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        try:
            # Here, so that a training without it does not load matplotlib.
            from .visualization import plot_training

            logger.info("Curves of the training: %s", plot_training(self.output_dir))
        # No error in a figure may make a complete training fail.
        except Exception as error:
            logger.warning("The curves of the training were not drawn: %s", error)


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, with the best result so far saved in checkpoints."""

    def state_dict(self) -> dict:
        """The best result so far and its iteration, with the latest result, if it is better."""
        metric, iteration = self.best_metric, self.best_iter
        latest, when = self.trainer.storage.latest().get(self._val_metric, (math.nan, None))
        if math.isfinite(latest) and (metric is None or self._compare(latest, metric)):
            metric, iteration = latest, when
        # float, since safe loading refuses NumPy's types.
        return {"best_metric": None if metric is None else float(metric), "best_iter": iteration}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
