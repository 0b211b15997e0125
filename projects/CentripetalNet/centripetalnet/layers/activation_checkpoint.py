"""Activation checkpointing: less memory in training, as activations are recomputed."""

from contextlib import nullcontext
from typing import Any, Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(module: nn.Module, function: Callable, *inputs) -> Any:
    """Calls a function and keeps only its inputs for the backward pass, which recomputes the rest.

    Same result and gradients as ``function(*inputs)``. Batch-norm statistics are updated once;
    plain ``torch.utils.checkpoint`` would update them in both passes.

    Args:
        module: contains the norms that the function calls.
        function: draws no random numbers.
        inputs: arguments of the function.

    Returns:
        The result of the function.
    """
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _StatisticsKept(module)),
    )


class _StatisticsKept:
    """Context in which batch norms do not update their running statistics."""

    def __init__(self, module: nn.Module):
        self.norms = [x for x in module.modules() if isinstance(x, _BatchNorm)]

    def __enter__(self) -> None:
        self.states = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *exception) -> None:
        for norm, state in zip(self.norms, self.states):
            norm.momentum, norm.num_batches_tracked = state
