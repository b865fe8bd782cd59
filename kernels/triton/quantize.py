"""quantize and dequantize in Triton: see kernels/reference/quantize.py for the contract.

A program holds some buckets of a row. Of a bucket of B values, counter c of the random numbers serves the values
c + l * B/8 for l = 0..7, and their codes fall into the bytes c + r * B/8: so the tiles [buckets, B/8] of the eight l
never exchange a lane. Rows with NaN or infinity are flagged, and rewritten by a second kernel that otherwise returns at
once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int32, uint8

from ...errors import BackendError
from .. import launch
from ..reference import quantize as reference
from .coding import level_at, levels, step_of, value_of

FLOAT_MAX = tl.constexpr(reference.FLT_MAX)
ZERO_BELOW = tl.constexpr(reference.ZERO_BELOW)
MOST_HALVINGS = tl.constexpr((launch.MAX_BUCKET // 8).bit_length() - 1)
NEAREST_SHIFT = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no room for a fraction


@triton.jit
def _sum_at(update, residual, offsets, mask, RESIDUAL: tl.constexpr):
    a = tl.load(update + offsets, mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        a = a + tl.load(residual + offsets, mask, other=0.0)
    return a


@triton.jit
def _largest(a):
    """Magnitude's bits of the largest value of each bucket: NaN above infinity above all others."""
    return tl.max(a.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)


@triton.jit
def _tree_sum(squares, GROUP: tl.constexpr, EIGHTH: tl.constexpr):
    """Sum of each bucket's [GROUP, EIGHTH] by halving: a fixed order."""
    for halving in tl.static_range(MOST_HALVINGS):
        if EIGHTH >> halving > 1:
            squares = tl.sum(tl.reshape(squares, [GROUP, 2, EIGHTH >> (halving + 1)]), axis=1)
    return tl.sum(squares, axis=1)  # of the one value that is left


@triton.jit
def _square(a):
    wide = a.to(tl.float64)
    return wide * wide


@triton.jit
def _level(a, inverse, draw, there, BITS: tl.constexpr, STOCHASTIC: tl.constexpr):
    top: tl.constexpr = levels(BITS)
    if BITS == 1:
        if STOCHASTIC:
            y = a * inverse
            q = tl.where(draw < (((y + 1.0) * 0.5) * 65536.0).to(tl.int32), 0, 1)
        else:
            q = tl.where(a < 0.0, 1, 0)
    else:
        y = a * inverse
        if STOCHASTIC:
            floor = y.to(tl.int32)
            floor = floor - tl.where(floor.to(tl.float32) > y, 1, 0)
            threshold = ((y - floor.to(tl.float32)) * 65536.0).to(tl.int32)
            q = floor + tl.where(draw < threshold, 1, 0)
        else:
            q = ((y + NEAREST_SHIFT) - NEAREST_SHIFT).to(tl.int32)
        q = tl.minimum(tl.maximum(q, -top), top)
    return tl.where(there, q, 0)


@triton.jit
def _store_lost(target, offsets, mask, a, q, step, alive, BITS: tl.constexpr):
    lost = a - value_of(q, step, BITS)
    if BITS == 1:
        lost = tl.minimum(tl.maximum(lost, -FLOAT_MAX), FLOAT_MAX)
    tl.store(target + offsets, tl.where(alive, lost, a), mask)


@triton.jit
def quantize_buckets(
    update, residual, seeds, codes, scales, new_residual, nonfinite, n, buckets, programs,
    BITS: tl.constexpr, BUCKET: tl.constexpr, GROUP: tl.constexpr, RESIDUAL: tl.constexpr, L2: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """`programs` programs a row, of GROUP buckets each."""
    EIGHTH: tl.constexpr = BUCKET // 8
    row = tl.program_id(0) // programs
    first = (tl.program_id(0) - row * programs) * GROUP
    row = row.to(tl.int64)
    bucket = first.to(tl.int64) + tl.arange(0, GROUP)
    counter = tl.arange(0, EIGHTH)
    # The position in the row of value l of each counter is at + l * EIGHTH.
    at = bucket[:, None] * BUCKET + counter[None, :]
    base = row * n + at
    a0 = _sum_at(update, residual, base, at < n, RESIDUAL)
    a1 = _sum_at(update, residual, base + EIGHTH, at + EIGHTH < n, RESIDUAL)
    a2 = _sum_at(update, residual, base + 2 * EIGHTH, at + 2 * EIGHTH < n, RESIDUAL)
    a3 = _sum_at(update, residual, base + 3 * EIGHTH, at + 3 * EIGHTH < n, RESIDUAL)
    a4 = _sum_at(update, residual, base + 4 * EIGHTH, at + 4 * EIGHTH < n, RESIDUAL)
    a5 = _sum_at(update, residual, base + 5 * EIGHTH, at + 5 * EIGHTH < n, RESIDUAL)
    a6 = _sum_at(update, residual, base + 6 * EIGHTH, at + 6 * EIGHTH < n, RESIDUAL)
    a7 = _sum_at(update, residual, base + 7 * EIGHTH, at + 7 * EIGHTH < n, RESIDUAL)

    largest = tl.maximum(tl.maximum(_largest(a0), _largest(a1)), tl.maximum(_largest(a2), _largest(a3)))
    others = tl.maximum(tl.maximum(_largest(a4), _largest(a5)), tl.maximum(_largest(a6), _largest(a7)))
    largest = tl.maximum(largest, others)
    finite = largest < 0x7F800000
    tl.store(nonfinite + row + bucket * 0, 1, (bucket < buckets) & (finite == 0))
    scale = largest.to(tl.float32, bitcast=True)
    if L2:
        squares = (_square(a0) + _square(a4)) + (_square(a2) + _square(a6))
        squares = squares + ((_square(a1) + _square(a5)) + (_square(a3) + _square(a7)))
        scale = tl.minimum(tl.sqrt(_tree_sum(squares, GROUP, EIGHTH)).to(tl.float32), FLOAT_MAX)
    scale = tl.where(finite & (scale >= ZERO_BELOW), scale, 0.0)
    tl.store(scales + row * buckets + bucket, scale, bucket < buckets)

    alive = (scale != 0.0)[:, None]
    safe = tl.where(scale != 0.0, scale, 1.0)
    inverse = tl.div_rn(safe * 0.0 + levels(BITS), safe)[:, None]
    step = step_of(scale, BITS)[:, None]
    d0 = tl.full([GROUP, EIGHTH], 0, tl.int32)
    d1 = d0
    d2 = d0
    d3 = d0
    d4 = d0
    d5 = d0
    d6 = d0
    d7 = d0
    if STOCHASTIC:
        block = bucket[:, None] * EIGHTH + counter[None, :]
        low = (block & 0xFFFFFFFF).to(tl.uint32)
        high = (block >> 32).to(tl.uint32)
        zero = low * 0
        w0, w1, w2, w3 = tl.philox(tl.load(seeds + row), low, high, zero, zero)
        d0 = (w0 & 0xFFFF).to(tl.int32)
        d1 = (w0 >> 16).to(tl.int32)
        d2 = (w1 & 0xFFFF).to(tl.int32)
        d3 = (w1 >> 16).to(tl.int32)
        d4 = (w2 & 0xFFFF).to(tl.int32)
        d5 = (w2 >> 16).to(tl.int32)
        d6 = (w3 & 0xFFFF).to(tl.int32)
        d7 = (w3 >> 16).to(tl.int32)
    q0 = _level(a0, inverse, d0, alive & (at < n), BITS, STOCHASTIC)
    q1 = _level(a1, inverse, d1, alive & (at + EIGHTH < n), BITS, STOCHASTIC)
    q2 = _level(a2, inverse, d2, alive & (at + 2 * EIGHTH < n), BITS, STOCHASTIC)
    q3 = _level(a3, inverse, d3, alive & (at + 3 * EIGHTH < n), BITS, STOCHASTIC)
    q4 = _level(a4, inverse, d4, alive & (at + 4 * EIGHTH < n), BITS, STOCHASTIC)
    q5 = _level(a5, inverse, d5, alive & (at + 5 * EIGHTH < n), BITS, STOCHASTIC)
    q6 = _level(a6, inverse, d6, alive & (at + 6 * EIGHTH < n), BITS, STOCHASTIC)
    q7 = _level(a7, inverse, d7, alive & (at + 7 * EIGHTH < n), BITS, STOCHASTIC)
    if RESIDUAL:
        _store_lost(new_residual, base, at < n, a0, q0, step, alive, BITS)
        _store_lost(new_residual, base + EIGHTH, at + EIGHTH < n, a1, q1, step, alive, BITS)
        _store_lost(new_residual, base + 2 * EIGHTH, at + 2 * EIGHTH < n, a2, q2, step, alive, BITS)
        _store_lost(new_residual, base + 3 * EIGHTH, at + 3 * EIGHTH < n, a3, q3, step, alive, BITS)
        _store_lost(new_residual, base + 4 * EIGHTH, at + 4 * EIGHTH < n, a4, q4, step, alive, BITS)
        _store_lost(new_residual, base + 5 * EIGHTH, at + 5 * EIGHTH < n, a5, q5, step, alive, BITS)
        _store_lost(new_residual, base + 6 * EIGHTH, at + 6 * EIGHTH < n, a6, q6, step, alive, BITS)
        _store_lost(new_residual, base + 7 * EIGHTH, at + 7 * EIGHTH < n, a7, q7, step, alive, BITS)

    # Byte c + r * EIGHTH of a bucket holds the levels of the values l = r + t * BITS, at bit t * BITS.
    MASK: tl.constexpr = (1 << BITS) - 1
    there = (bucket < buckets)[:, None]
    byte = codes + (row * buckets + bucket)[:, None] * (EIGHTH * BITS) + counter[None, :]
    if BITS == 1:
        packed = (q0 | (q1 << 1) | (q2 << 2) | (q3 << 3)) | ((q4 << 4) | (q5 << 5) | (q6 << 6) | (q7 << 7))
        tl.store(byte, packed.to(tl.uint8), there)
    elif BITS == 2:
        packed = (q0 & MASK) | ((q2 & MASK) << 2) | ((q4 & MASK) << 4) | ((q6 & MASK) << 6)
        tl.store(byte, packed.to(tl.uint8), there)
        packed = (q1 & MASK) | ((q3 & MASK) << 2) | ((q5 & MASK) << 4) | ((q7 & MASK) << 6)
        tl.store(byte + EIGHTH, packed.to(tl.uint8), there)
    elif BITS == 4:
        tl.store(byte, ((q0 & MASK) | ((q4 & MASK) << 4)).to(tl.uint8), there)
        tl.store(byte + EIGHTH, ((q1 & MASK) | ((q5 & MASK) << 4)).to(tl.uint8), there)
        tl.store(byte + 2 * EIGHTH, ((q2 & MASK) | ((q6 & MASK) << 4)).to(tl.uint8), there)
        tl.store(byte + 3 * EIGHTH, ((q3 & MASK) | ((q7 & MASK) << 4)).to(tl.uint8), there)
    else:
        tl.store(byte, (q0 & MASK).to(tl.uint8), there)
        tl.store(byte + EIGHTH, (q1 & MASK).to(tl.uint8), there)
        tl.store(byte + 2 * EIGHTH, (q2 & MASK).to(tl.uint8), there)
        tl.store(byte + 3 * EIGHTH, (q3 & MASK).to(tl.uint8), there)
        tl.store(byte + 4 * EIGHTH, (q4 & MASK).to(tl.uint8), there)
        tl.store(byte + 5 * EIGHTH, (q5 & MASK).to(tl.uint8), there)
        tl.store(byte + 6 * EIGHTH, (q6 & MASK).to(tl.uint8), there)
        tl.store(byte + 7 * EIGHTH, (q7 & MASK).to(tl.uint8), there)


@triton.jit
def rewrite_flagged(
    residual, codes, scales, new_residual, nonfinite, n, code_bytes, buckets, blocks, tiles,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Give a flagged row codes 0, scales 0 and its old residual (as bits), `tiles` tiles a program."""
    row = tl.program_id(0) // blocks
    block = (tl.program_id(0) - row * blocks).to(tl.int64)
    row = row.to(tl.int64)
    if tl.load(nonfinite + row) != 0:
        tile = block * tiles
        end = tile + tiles
        while tile < end:
            i = tile * BLOCK + tl.arange(0, BLOCK)
            tl.store(codes + row * code_bytes + i, tl.zeros([BLOCK], tl.uint8), i < code_bytes)
            tl.store(scales + row * buckets + i, 0.0, i < buckets)
            if RESIDUAL:
                tl.store(new_residual + row * n + i, tl.load(residual + row * n + i, i < n, other=0), i < n)
            tile += 1


@triton.jit
def dequantize_buckets(
    codes, scales, out, n, buckets, programs, BITS: tl.constexpr, BUCKET: tl.constexpr, GROUP: tl.constexpr
):
    """`programs` programs a row, of GROUP buckets each."""
    EIGHTH: tl.constexpr = BUCKET // 8
    row = tl.program_id(0) // programs
    first = (tl.program_id(0) - row * programs) * GROUP
    row = row.to(tl.int64)
    bucket = first.to(tl.int64) + tl.arange(0, GROUP)
    counter = tl.arange(0, EIGHTH)
    at = bucket[:, None] * BUCKET + counter[None, :]
    there = bucket < buckets
    step = step_of(tl.load(scales + row * buckets + bucket, there, other=0.0), BITS)[:, None]
    byte = codes + (row * buckets + bucket)[:, None] * (EIGHTH * BITS) + counter[None, :]
    for r in tl.static_range(BITS):
        packed = tl.load(byte + r * EIGHTH, there[:, None], other=0).to(tl.int32)
        for t in tl.static_range(8 // BITS):
            i = at + (r + t * BITS) * EIGHTH
            tl.store(out + row * n + i, value_of(level_at(packed, t, BITS), step, BITS), i < n)


# ---- launchers: contiguous tensors of checked shapes; an absent tensor's place is taken by one that is there ----


def quantize_into(
    update: Tensor,
    seeds: Tensor,
    residual: Tensor | None,
    bits: int,
    bucket: int,
    norm: str,
    rounding: str,
    codes: Tensor,
    scales: Tensor,
    new_residual: Tensor,
    nonfinite: Tensor,
) -> None:
    """Write codes, scales, residual and flags of rows [C, n], as `fedsynsam.ops.quantize`.

    Raises BackendError for a bucket of more than launch.MAX_BUCKET values.
    """
    (rows, n), buckets = update.shape, scales.shape[1]
    nonfinite.zero_()
    if rows * n == 0:
        return
    check_bucket(bucket)
    size, flags = launch.quantize(bucket), nonfinite.view(uint8)
    programs = -(-buckets // size.group)
    quantize_buckets[launch.grid("quantize", rows * programs)](
        update, update if residual is None else residual, seeds, codes, scales,
        scales if residual is None else new_residual, flags, n, buckets, programs, BITS=bits, BUCKET=bucket,
        GROUP=size.group, RESIDUAL=residual is not None, L2=norm == "l2", STOCHASTIC=rounding == "stochastic",
        num_warps=size.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    bits_of = scales if residual is None else residual
    new_bits = scales if residual is None else new_residual
    longest = max(n, codes.shape[1])
    blocks = -(-longest // (size.repair_block * size.repair_tiles))
    rewrite_flagged[launch.grid("quantize", rows * blocks)](
        bits_of.view(int32), codes, scales, new_bits.view(int32), flags, n, codes.shape[1], buckets, blocks,
        size.repair_tiles, RESIDUAL=residual is not None, BLOCK=size.repair_block, num_warps=4,
    )  # fmt: skip


def dequantize_into(codes: Tensor, scales: Tensor, bits: int, bucket: int, out: Tensor) -> None:
    """Write the values of codes, as `fedsynsam.ops.dequantize`; as `quantize_into` for large buckets."""
    (rows, n), buckets = out.shape, scales.shape[1]
    if rows * n == 0:
        return
    check_bucket(bucket)
    size = launch.quantize(bucket)
    programs = -(-buckets // size.group)
    dequantize_buckets[launch.grid("dequantize", rows * programs)](
        codes, scales, out, n, buckets, programs, BITS=bits, BUCKET=bucket, GROUP=size.group,
        num_warps=size.num_warps, enable_fp_fusion=False,
    )  # fmt: skip


def check_bucket(bucket: int) -> None:
    """Raise BackendError if a program cannot hold a bucket."""
    if bucket > launch.MAX_BUCKET:
        raise BackendError(
            f"backend 'triton' holds at most {launch.MAX_BUCKET} values of a bucket; bucket is {bucket}: "
            "use the backend 'cuda' for larger ones"
        )
