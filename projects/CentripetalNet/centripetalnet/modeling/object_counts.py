"""Loss normalizers in distributed training."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def count_per_process(count: Tensor) -> Tensor:
    """Mean count per process.

    DistributedDataParallel averages gradients. If each process divides its loss sum by this count,
    they equal those of one process with the whole batch, given frozen or synchronised norms.

    Args:
        count: any shape, of this process's part of the batch.

    Returns:
        The sum over all processes, at least 1, divided by the number of processes; float32.
    """
    count, num_processes = count.to(torch.float32, copy=True), comm.get_world_size()
    if num_processes > 1:
        dist.all_reduce(count)
    return count.clamp(min=1) / num_processes
