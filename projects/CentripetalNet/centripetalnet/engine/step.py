"""One step of training, in any precision, on any device."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Callable, Optional

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import TrainingStream
from ..data.seeding import STEP, seed_generators
from .solver import check_same_optimizer, optimizer_name
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)

# Overflows in a row after which the scale, at first 65536, is too small for any gradient.
_MAX_OVERFLOWS = 30
# Different unusable images that are logged.
_MAX_WARNINGS = 10


class StepTrainer(SimpleTrainer):
    """Detectron2's training step in any precision; skips steps with a NaN loss or gradient.

    Only float16 needs a gradient scaler, as bfloat16 has the range of float32. Detectron2's
    AMPTrainer is for CUDA alone.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        *,
        amp_dtype: Optional[torch.dtype] = None,
        max_gradient_norm: float = math.inf,
        norm_type: float = 2.0,
        untrained: Callable[[], Iterable[nn.Parameter]] = tuple,
        max_skipped_steps: int = 0,
        seed: int = 0,
        accumulate: int = 1,
        step_counts: Optional[Callable] = None,
        average: Optional[WeightAverage] = None,
    ):
        """
        Args:
            model, optimizer: see ``SimpleTrainer``.
            data_loader: endless batches. One over a ``TrainingStream`` resumes where a checkpoint
                left it.
            amp_dtype: bfloat16 or float16, of the forward pass where autocast says so. None for
                float32 everywhere.
            max_gradient_norm: all gradients together are clipped at this norm.
            norm_type: of that norm, 2 for the Euclidean one.
            untrained: parameters that this iteration does not train. They get no gradient, so the
                optimizer keeps no state of them.
            max_skipped_steps: steps with a NaN or infinite loss or gradient that are skipped. The
                next one is an error.
            seed: of the random numbers that layers draw. Each step draws the same, whatever came
                before it.
            accumulate: batches of a step, whose gradients are added up.
            step_counts: returns the model's second argument from these batches, if there are
                several: the normalizers of their losses.
            average: updated after each step.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.num_samples = 0
        self._left_out: Counter = Counter()
        device_type = next(model.parameters()).device.type
        self.autocast = torch.autocast(device_type, dtype=amp_dtype, enabled=amp_dtype is not None)
        # Without effect if disabled.
        self.grad_scaler = torch.amp.GradScaler(device_type, enabled=amp_dtype == torch.float16)
        self.max_gradient_norm = max_gradient_norm
        self.norm_type = norm_type
        self.untrained = untrained
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self.accumulate = accumulate
        self.step_counts = step_counts
        self.average = average
        self._overflows = 0
        # Norm statistics before the step: the forward pass puts a bad batch into them.
        self._statistics_before = [x.clone() for x in model.buffers()]

    @property
    def _stream(self) -> Optional[TrainingStream]:
        dataset = getattr(self.data_loader, "dataset", None)
        return dataset if isinstance(dataset, TrainingStream) else None

    def run_step(self) -> None:
        """One iteration, see ``SimpleTrainer.run_step``.

        Raises:
            FloatingPointError: if loss or gradient is NaN or infinite and no more steps may be
                skipped; names each loss and the images.
        """
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]
        data_time = time.perf_counter() - start
        data = [x for batch in batches for x in batch]
        self._log_skipped_images(data)
        seed_generators(self.seed, STEP, self.iter, comm.get_rank())
        # Looked up anew, since precise BN replaces the tensors.
        statistics = list(self.model.buffers())
        _copy(statistics, self._statistics_before)
        self.optimizer.zero_grad()
        losses = self._add_gradients(batches)
        total = sum(losses.values())
        for parameter in self.untrained():
            # DistributedDataParallel gives it a gradient of zeros, which Adam would count as steps.
            parameter.grad = None
        self.grad_scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            [x for group in self.optimizer.param_groups for x in group["params"]],
            self.max_gradient_norm,
            self.norm_type,
        )
        loss_is_finite, norm_is_finite = _are_finite_everywhere(total, norm)
        # The gradient scaler skips gradients that overflow and lowers its scale.
        may_overflow = self.grad_scaler.is_enabled() and self._overflows < _MAX_OVERFLOWS
        self._overflows = 0 if norm_is_finite else self._overflows + 1
        if not (loss_is_finite and (norm_is_finite or may_overflow)):
            _copy(self._statistics_before, statistics)
            self._skip_step(losses, norm, data)
        else:
            self._write_metrics(losses, data_time)
            self.grad_scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update()
        self.grad_scaler.update()
        self.num_samples += len(data) * comm.get_world_size()

    def _add_gradients(self, batches: list[list[dict]]) -> dict[str, Tensor]:
        """Adds up the gradients of all batches; returns the sums of their losses."""
        if len(batches) == 1:
            with self.autocast:
                losses = self.model(*batches)
            self.grad_scaler.scale(sum(losses.values())).backward()
            return losses
        counts = self.step_counts(batches)
        totals: dict[str, Tensor] = {}
        for batch in batches:
            # DistributedDataParallel averages the gradients of all batches with the last one.
            is_distributed = isinstance(self.model, DistributedDataParallel)
            waits = is_distributed and batch is not batches[-1]
            with self.model.no_sync() if waits else nullcontext():
                with self.autocast:
                    losses = self.model(batch, counts)
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach()
        return totals

    def _log_skipped_images(self, data: list[dict]) -> None:
        problems = [problem for x in data for problem in x.get("left_out", ())]
        for problem in problems:
            self._left_out[problem] += 1
            if self._left_out[problem] == 1 and len(self._left_out) <= _MAX_WARNINGS:
                logger.warning("Skipped an image: %s", problem)
                if len(self._left_out) == _MAX_WARNINGS:
                    logger.warning(
                        "Further images are only counted, as images_left_out in metrics.json. "
                        "centripetalnet-check lists them all."
                    )
        if problems:
            get_event_storage().put_scalar("images_left_out", sum(self._left_out.values()))

    def _skip_step(self, losses: dict[str, Tensor], norm: Tensor, data: list[dict]) -> None:
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        names = [x.get("file_name", "an image without file name") for x in data]
        what = (
            f"loss or gradient of iteration {self.iter} is not finite: {values}, gradient norm "
            f"{float(norm)}, images {', '.join(names)}"
        )
        self.skipped_steps += 1
        if self.skipped_steps > self.max_skipped_steps:
            raise FloatingPointError(
                f"process {comm.get_rank()}: {what}. SOLVER.MAX_SKIPPED_STEPS "
                f"{self.max_skipped_steps} allows no more of them. Resume from the last checkpoint "
                "with a lower learning rate, --resume SOLVER.BASE_LR ..., or start again with a "
                "longer SOLVER.WARMUP_ITERS."
            )
        logger.warning(
            "Skipped a step, %d of at most %d: %s", self.skipped_steps, self.max_skipped_steps, what
        )
        self.optimizer.zero_grad()

    def state_dict(self) -> dict:
        """With gradient scaler, skipped steps and position in the stream of images."""
        return {
            **super().state_dict(),
            "optimizer_name": optimizer_name(self.optimizer),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "seed": self.seed,
            "num_samples": self.num_samples,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """
        Raises:
            ValueError: if the state is that of another optimizer or of other parameters.
        """
        name = state_dict.get("optimizer_name")
        check_same_optimizer(self.optimizer, state_dict["optimizer"], name)
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.skipped_steps = state_dict.get("skipped_steps", 0)
        if self._stream is None or "num_samples" not in state_dict:
            logger.warning("The order of images restarts: the checkpoint does not have it.")
            return
        self.seed, self.num_samples = state_dict["seed"], state_dict["num_samples"]
        self._stream.resume(self.seed, self.num_samples)
        # An existing iterator is at another position.
        self._data_loader_iter_obj = None


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    # A single kernel copies many tensors of one dtype and device; others are copied one by one.
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for source, target in zip(sources, targets):
        of_dtype = groups.setdefault(source.dtype, ([], []))
        of_dtype[0].append(source)
        of_dtype[1].append(target)
    for of_dtype in groups.values():
        torch._foreach_copy_(of_dtype[1], of_dtype[0])


def _are_finite_everywhere(*values: Tensor) -> list[bool]:
    """Over all processes, since they share one gradient and have to skip a step together."""
    are_finite = torch.stack([x.detach().float() for x in values]).isfinite().float()
    if comm.get_world_size() > 1:
        dist.all_reduce(are_finite, op=dist.ReduceOp.MIN)
    return are_finite.bool().tolist()
