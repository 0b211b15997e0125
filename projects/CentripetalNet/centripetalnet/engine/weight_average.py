"""Exponential moving average of a model's weights during training."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage:
    """``torch.optim.swa_utils.AveragedModel`` of weights and norm statistics, with a warm-up.

    The n-th update adds ``max(1 - decay, 9 / (10 + n))`` of the new weights, so that the random
    weights of the beginning are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: not in DistributedDataParallel.
            decay: share of the old average that an update keeps.

        Raises:
            ValueError: if ``decay`` is not in [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"MODEL.EMA.DECAY must be at least 0 and below 1, got {decay}")
        self.source = model
        self.decay = decay
        self.updates = 0
        self._averaged = AveragedModel(model, multi_avg_fn=self._add, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The model with averaged weights."""
        return self._averaged.module

    def update(self) -> None:
        """Adds the current weights to the average."""
        self._averaged.update_parameters(self.source)
        self.updates += 1

    def restart(self) -> None:
        """Sets the average to the current weights."""
        self.updates = 0
        self._averaged.n_averaged.zero_()
        self.update()

    @torch.no_grad()
    def _add(self, averages: list[Tensor], values: list[Tensor], _: Tensor) -> None:
        if averages[0].is_floating_point():
            share = max(1 - self.decay, 9 / (10 + self.updates))
            torch._foreach_lerp_(averages, values, share)
        else:
            # Counters of batch norms.
            torch._foreach_copy_(averages, values)

    def state_dict(self) -> dict:
        """``weights`` under the names of the model, and the number of ``updates``."""
        return {"weights": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["weights"])
        self.updates = state["updates"]
        self._averaged.n_averaged.fill_(self.updates)
