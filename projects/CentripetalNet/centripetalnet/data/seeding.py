"""Random numbers that depend on their purpose only, not on earlier draws."""

import random

import numpy as np
import torch

# First part of a key: two purposes never share random numbers.
SAMPLE, STEP = 0, 1


def seed_generators(*key: int) -> None:
    """Seeds the generators of Python, NumPy and PyTorch.

    Args:
        key: non-negative integers; different keys give different numbers.
    """
    words = np.random.SeedSequence(key).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)
    torch.manual_seed(int(words[2]))
