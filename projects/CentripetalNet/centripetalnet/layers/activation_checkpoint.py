"""Less memory in training: what a part of the network computed is forgotten and computed again."""

from contextlib import nullcontext
from typing import Any, Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(module: nn.Module, function: Callable, *inputs) -> Any:
    """Calls a function and keeps its inputs alone; the gradient computes the rest once more.

    Same result and gradients as ``function(*inputs)``, and norm statistics are collected once:
    ``torch.utils.checkpoint`` by itself would collect them in both passes.

    Args:
        module: whose norms the function runs.
        function: without randomness.
        inputs: its arguments.

    Returns:
        What the function returns.
    """
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _StatisticsKept(module)),
    )


class _StatisticsKept:
    """Norms in here use the batch's statistics and do not add them to the running ones."""

    def __init__(self, module: nn.Module):
        self.norms = [x for x in module.modules() if isinstance(x, _BatchNorm)]

    def __enter__(self) -> None:
        self.states = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *exception) -> None:
        for norm, state in zip(self.norms, self.states):
            norm.momentum, norm.num_batches_tracked = state
