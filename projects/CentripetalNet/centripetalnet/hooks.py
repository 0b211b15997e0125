"""Hooks of the trainer."""

import math

from detectron2.engine import hooks


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
