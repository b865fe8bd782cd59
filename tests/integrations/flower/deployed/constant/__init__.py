"""Clients whose updates are known beforehand."""

import numpy as np

SIZE = 100_000


def update(partition: int) -> np.ndarray:
    """What a client adds to the model in every round."""
    return 0.01 * np.random.default_rng(partition).standard_normal(SIZE).astype(np.float32)
