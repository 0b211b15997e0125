"""Hooks of the trainer."""

import logging
import math
from typing import Optional

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

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
            from ..visualization import plot_training

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


class TrainingStopped(BaseException):
    """Ends a training before its last iteration. Not an Exception, which Detectron2 would log."""


class EarlyStopping(HookBase):
    """Ends the training if the evaluated AP has not become better for some time.

    The checkpoints of the best and of the last iteration, ``model_final.pth``, are kept.
    """

    def __init__(self, best: Optional[BestCheckpointer], period: int, patience: int):
        """
        Args:
            best: of the main process, which decides; None in the others.
            period: iterations between two evaluations.
            patience: iterations since the best evaluation after which the training ends.
        """
        self.best = best
        self.period = period
        self.patience = patience

    def before_train(self) -> None:
        """Ends a resumed training that had ended."""
        self._stop_after(self.trainer.start_iter - 1)

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self._stop_after(self.trainer.iter)

    def _stop_after(self, iteration: int) -> None:
        best_iter = comm.all_gather(self.best and self.best.best_iter)[0]
        if best_iter is None or iteration - best_iter < self.patience:
            return
        logger.info(
            "The training ends after iteration %d: the AP is best at iteration %d, and "
            "SOLVER.PATIENCE evaluations since then were not better.",
            iteration,
            best_iter,
        )
        self.trainer.max_iter = iteration + 1
        self.trainer.checkpointer.save("model_final", iteration=iteration)
        raise TrainingStopped
