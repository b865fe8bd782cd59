"""chunk_topk in Triton: see kernels/reference/topk.py for the contract.

One program holds one chunk: it reads update and residual once, finds the threshold by bisection on the magnitude's
key, and writes the winners and the new residual. Rows with NaN or infinity are flagged, and rewritten by a second
kernel that otherwise returns at once. There is no global `topk` here.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int32, uint8

from ...errors import BackendError
from .. import launch

INFINITY = tl.constexpr(0x7F800000)
# The threshold is most likely within a factor of four of the largest magnitude: two exponents of the key.
FIRST_STRIDE = tl.constexpr(1 << 24)
LAST_STRIDE = tl.constexpr(1 << 30)


@triton.jit
def _split(program, blocks):
    """Row and place in the row of a program, for 64-bit offsets; the division needs but 32 bits."""
    row = program // blocks
    return row.to(tl.int64), (program - row * blocks).to(tl.int64)


@triton.jit
def select_chunk(
    update, residual, indices, values, new_residual, nonfinite, n, chunk, chunks, full, k_row, k_chunk, k_tail,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of the `chunks` chunks of a row, the first `full` have `chunk` elements each, of which k_chunk win."""
    row, number = _split(tl.program_id(0), chunks)
    begin = number * chunk
    k = tl.where(number < full, k_chunk, k_tail)
    length = tl.minimum(n - begin, chunk).to(tl.int32)

    # 64-bit offsets are in the bases; the lanes add 32-bit ones, for the sake of registers.
    lane = tl.arange(0, BLOCK)
    mask = lane < length
    base = row * n + begin
    a = tl.load(update + base + lane, mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        a = a + tl.load(residual + base + lane, mask, other=0.0)
    # NaN counts as infinity, so that a key can be counted up; what is not there lies below every key.
    key = tl.minimum(a.to(tl.int32, bitcast=True) & 0x7FFFFFFF, INFINITY)
    key = tl.where(mask, key, -1)
    largest = tl.max(key)
    tl.store(nonfinite + row, 1, largest >= INFINITY)

    # At least k keys, `above_low` of them, are >= low; fewer than k, `above_high` of them, are >= high.
    low = largest * 0
    high = largest + 1
    above_low = length
    above_high = largest * 0
    stride = largest * 0 + FIRST_STRIDE
    while (high - low > 1) & (above_low != k):
        middle = tl.maximum(low + (high - low) // 2, high - stride)
        stride = tl.minimum(stride, LAST_STRIDE // 2) * 2
        count = tl.sum((key >= middle).to(tl.int32))
        enough = count >= k
        low = tl.where(enough, middle, low)
        above_low = tl.where(enough, count, above_low)
        high = tl.where(enough, high, middle)
        above_high = tl.where(enough, above_high, count)

    # The keys between the bounds all win, or are equal and the first of them do. One scan counts both kinds of winner.
    between = (key >= low) & (key < high)
    needed = k - above_high
    counted = tl.cumsum((key >= high).to(tl.int32) + (between.to(tl.int32) << 16))
    wins = (key >= high) | (between & ((counted >> 16) <= needed))
    tl.store(new_residual + base + lane, tl.where(wins, 0.0, a), key >= 0)
    place = (counted & 0xFFFF) + tl.minimum(counted >> 16, needed) - 1
    base = row * k_row + number * k_chunk
    tl.store(indices + base + place, begin.to(tl.int32) + lane, wins)
    tl.store(values + base + place, a, wins)


@triton.jit
def rewrite_flagged(
    residual, indices, values, new_residual, nonfinite, n, k, blocks, tiles,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Give a flagged row indices 0..k-1, values 0 and its old residual (as bits), `tiles` tiles a program."""
    row, block = _split(tl.program_id(0), blocks)
    if tl.load(nonfinite + row) != 0:
        tile = block * tiles
        end = tile + tiles
        while tile < end:
            i = tile * BLOCK + tl.arange(0, BLOCK)
            old = tl.zeros([BLOCK], tl.int32)
            if RESIDUAL:
                old = tl.load(residual + row * n + i, i < n, other=0)
            tl.store(new_residual + row * n + i, old, i < n)
            tl.store(indices + row * k + i, i.to(tl.int32), i < k)
            tl.store(values + row * k + i, 0.0, i < k)
            tile += 1


def chunk_topk_into(
    update: Tensor,
    residual: Tensor | None,
    chunk: int,
    k_chunk: int,
    k_tail: int,
    indices: Tensor,
    values: Tensor,
    new_residual: Tensor,
    nonfinite: Tensor,
) -> None:
    """Write the k_chunk largest magnitudes of each chunk and k_tail of a short last one, as `fedsynsam.ops.chunk_topk`.

    Raises BackendError for a chunk of more than launch.MAX_CHUNK elements.
    """
    (rows, n), k = update.shape, indices.shape[1]
    nonfinite.zero_()
    if rows * n == 0:
        return
    longest = min(chunk, n)
    if longest > launch.MAX_CHUNK:
        raise BackendError(
            f"backend 'triton' holds at most {launch.MAX_CHUNK} elements of a chunk; chunk is {longest}: "
            "use the backend 'reference' for longer ones, or 'cpu' on the CPU"
        )
    size, chunks = launch.chunk_topk(longest), -(-n // chunk)
    flags = nonfinite.view(uint8)
    select_chunk[launch.grid("chunk_topk", rows * chunks)](
        update, update if residual is None else residual, indices, values, new_residual, flags, n, chunk, chunks,
        n // chunk, k, k_chunk, k_tail, RESIDUAL=residual is not None, BLOCK=size.block, num_warps=size.num_warps,
        enable_fp_fusion=False,
    )  # fmt: skip
    new_bits = new_residual.view(int32)
    blocks = -(-n // (size.repair_block * size.repair_tiles))
    rewrite_flagged[launch.grid("chunk_topk", rows * blocks)](
        new_bits if residual is None else residual.view(int32), indices, values, new_bits, flags, n, k, blocks,
        size.repair_tiles, RESIDUAL=residual is not None, BLOCK=size.repair_block, num_warps=4,
    )  # fmt: skip
