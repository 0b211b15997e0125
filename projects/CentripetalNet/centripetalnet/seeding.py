"""Random numbers that depend on what they are for, and not on what was drawn before."""

import random

import numpy as np
import torch

# What a key is for; two purposes never share random numbers.
SAMPLE, STEP = 0, 1


def seed_generators(*key: int) -> None:
    """Sets the generators of Python, NumPy and PyTorch, which augmentations and layers draw from.

    Args:
        key: not negative; every other key gives other numbers.
    """
    words = np.random.SeedSequence(key).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)
    torch.manual_seed(int(words[2]))
