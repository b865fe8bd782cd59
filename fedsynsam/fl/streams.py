"""Independent random streams: each draw of a run depends on the seed and its own place in the run, nothing else."""

from __future__ import annotations

import numpy as np

# One number a use. Two uses never share a stream, and adding one leaves the others as they are.
(
    PARTITION, WEIGHTS, COHORT, BATCHES, COMPRESSION, ORACLE, REAL_SET, SYNTHESIS, HELD_OUT, SHARPNESS, SLICES
) = range(11)  # fmt: skip


def stream(seed: int, use: int, *place: int) -> np.random.Generator:
    """The generator for `use` at `place` (such as round and client)."""
    return np.random.default_rng([seed, use, *place])


def number(seed: int, use: int, *place: int) -> int:
    """A 63-bit seed for `use` at `place`, for libraries that take an integer."""
    return int(stream(seed, use, *place).integers(2**63 - 1))
