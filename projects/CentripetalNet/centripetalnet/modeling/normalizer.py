"""What losses are divided by when several processes share a batch."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def count_per_process(count: Tensor) -> Tensor:
    """Counts of the whole batch, shared out evenly.

    Processes average their gradients. A sum that each divides by this, not by its own count,
    becomes the gradient that one process with the whole batch would have.

    Args:
        count: any shape, of this process's part of the batch.

    Returns:
        The sum over all processes, at least 1, divided by their number; float32.
    """
    count, num_processes = count.to(torch.float32, copy=True), comm.get_world_size()
    if num_processes > 1:
        dist.all_reduce(count)
    return count.clamp(min=1) / num_processes
