"""Launch sizes of the Triton kernels, as pure functions of the shape: nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple


class SamLaunch(NamedTuple):
    """How the sam kernels cut a row: `chunks` programs of `block` elements, `num_warps` warps each.

    `inline_partials` is the number of partial sums (a power of two) that the perturbation adds up itself, or 1 if
    there are so many that a launch of its own must do it.
    """

    block: int
    num_warps: int
    chunks: int
    inline_partials: int


def sam(n: int) -> SamLaunch:
    """Return the launch of the sam kernels for rows of `n` elements.

    16 elements a thread keep several 16-byte loads in flight in about 40 registers; rows shorter than a block take a
    smaller one, of at least 256 elements.
    """
    block = min(4096, max(256, _power_of_two(n)))
    chunks = -(-n // block)
    inline_partials = _power_of_two(chunks) if chunks <= 1024 else 1
    return SamLaunch(block, max(1, block // 512), chunks, inline_partials)


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n` (and at least 1)."""
    return 1 << max(0, n - 1).bit_length()
