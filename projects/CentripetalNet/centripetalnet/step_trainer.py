"""One step of training, in any precision, on any device."""

import logging
import time
from collections import Counter
from typing import Dict, List, Optional

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

from .data import TrainingStream
from .seeding import STEP, seed_generators

logger = logging.getLogger(__name__)

# Of different images that cannot be used.
_MAX_WARNINGS = 10


class StepTrainer(SimpleTrainer):
    """Detectron2's training step in any precision, which looks at the loss before it steps.

    On the CPU mixed precision is bfloat16, which has the range of float32 and needs no gradient
    scaler; Detectron2's AMPTrainer is for CUDA alone.
    """

    def __init__(
        self, model, data_loader, optimizer, *, amp: bool, max_skipped_steps: int = 0, seed: int = 0
    ):
        """
        Args:
            model, optimizer: see ``SimpleTrainer``.
            data_loader: batches without end. One over a ``TrainingStream`` is gone on with where a
                checkpoint left it.
            amp: whether the forward pass is in lower precision where autocast says so.
            max_skipped_steps: steps with a loss that is not finite that are left out; the next one
                is an error.
            seed: of what layers draw in training; each step draws the same whatever came before.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.num_samples = 0
        self._left_out: Counter = Counter()
        device_type = next(model.parameters()).device.type
        self.autocast = torch.autocast(
            device_type,
            dtype=torch.bfloat16 if device_type == "cpu" else torch.float16,
            enabled=amp,
        )
        # Disabled it hands everything through.
        self.grad_scaler = _grad_scaler(enabled=amp and device_type == "cuda")
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        # Norm statistics before the step: the forward pass puts a bad batch into them.
        self._buffers = list(model.buffers())
        self._buffers_before = [x.clone() for x in self._buffers]

    @property
    def _stream(self) -> Optional[TrainingStream]:
        dataset = getattr(self.data_loader, "dataset", None)
        return dataset if isinstance(dataset, TrainingStream) else None

    def run_step(self) -> None:
        """One iteration, see ``SimpleTrainer.run_step``.

        Raises:
            FloatingPointError: if the loss is not finite and no more steps may be left out; names
                each loss and the images.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self._tell_what_was_left_out(data)
        seed_generators(self.seed, STEP, self.iter, comm.get_rank())
        _copy(self._buffers, self._buffers_before)
        with self.autocast:
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        if not _is_finite_everywhere(total):
            self._skip_step(losses, data)
        else:
            self._write_metrics(losses, data_time)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        self.num_samples += len(data) * comm.get_world_size()

    def _tell_what_was_left_out(self, data: List[dict]) -> None:
        problems = [problem for x in data for problem in x.get("left_out", ())]
        for problem in problems:
            self._left_out[problem] += 1
            if self._left_out[problem] == 1 and len(self._left_out) <= _MAX_WARNINGS:
                logger.warning("Left out an image: %s", problem)
                if len(self._left_out) == _MAX_WARNINGS:
                    logger.warning(
                        "More images are only counted, as images_left_out in metrics.json; "
                        "centripetalnet-check names them all."
                    )
        if problems:
            get_event_storage().put_scalar("images_left_out", sum(self._left_out.values()))

    def _skip_step(self, losses: Dict[str, Tensor], data: List[dict]) -> None:
        _copy(self._buffers_before, self._buffers)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        names = [x.get("file_name", "an image without file name") for x in data]
        what = f"the loss of iteration {self.iter} is not finite: {values} for {', '.join(names)}"
        self.skipped_steps += 1
        if self.skipped_steps > self.max_skipped_steps:
            raise FloatingPointError(
                f"In process {comm.get_rank()} {what}. Of the steps that may be left out, "
                f"SOLVER.MAX_SKIPPED_STEPS {self.max_skipped_steps}, none remains. A lower "
                "SOLVER.BASE_LR or longer SOLVER.WARMUP_ITERS are what helps most often."
            )
        logger.warning(
            "Left out a step, %d of at most %d: %s",
            self.skipped_steps,
            self.max_skipped_steps,
            what,
        )
        self.optimizer.zero_grad()

    def state_dict(self) -> dict:
        """With the scaler's and the count of steps left out, for a checkpoint."""
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "seed": self.seed,
            "num_samples": self.num_samples,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.skipped_steps = state_dict.get("skipped_steps", 0)
        if self._stream is None or "num_samples" not in state_dict:
            logger.warning("The order of the images begins anew.")
            return
        self.seed, self.num_samples = state_dict["seed"], state_dict["num_samples"]
        self._stream.go_on(self.seed, self.num_samples)
        # An iterator that was made before stands at another place.
        self._data_loader_iter_obj = None


@torch.no_grad()
def _copy(sources: List[Tensor], targets: List[Tensor]) -> None:
    for source, target in zip(sources, targets):
        target.copy_(source)


def _is_finite_everywhere(loss: Tensor) -> bool:
    """In all processes: their gradients are one, so they leave a step out together."""
    is_finite = torch.isfinite(loss.detach()).float()
    if comm.get_world_size() > 1:
        dist.all_reduce(is_finite, op=dist.ReduceOp.MIN)
    return bool(is_finite)


def _grad_scaler(enabled: bool):
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)  # torch < 2.3
