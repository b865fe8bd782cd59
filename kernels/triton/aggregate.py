"""aggregate_codes and aggregate_sparse in Triton: see kernels/reference/aggregate.py for the contract.

A sum runs in payload order, one rounding for the product and one for the sum, without atomics: a program owns a range
of the output. Payloads reach a launch as tuples of pointers, launch.PAYLOADS at most, so that a captured graph holds
all it needs; a longer list continues the sum in the next launch. Tuples have a power of two of places, the last ones
of which may be empty (COUNT is their length, `count` how many are meant).

The entries of a sparse payload that fall into a program's range lie between two places, which a kernel of its own
finds for all ranges at once. They are added in memory, that is in the caches: a barrier stands between two payloads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from .coding import level_at, step_of, value_of
from .quantize import check_bucket


@triton.jit
def _start(out, i, mask, WANTED: tl.constexpr, ACCUMULATE: tl.constexpr):
    """What a sum of the values at `i` starts from; zeros where it is not wanted."""
    if WANTED and ACCUMULATE:
        return tl.load(out + i, mask, other=0.0)
    return tl.zeros(i.shape, tl.float32)


@triton.jit
def _added(total, packed, step, weight, SLOT: tl.constexpr, BITS: tl.constexpr):
    if SLOT * BITS < 8:
        total = total + weight * value_of(level_at(packed, SLOT, BITS), step, BITS)
    return total


@triton.jit
def _finish(out, i, mask, total, WANTED: tl.constexpr):
    if WANTED:
        tl.store(out + i, total, mask)


@triton.jit
def sum_codes(
    codes, scales, weights, out, n, buckets, count, ACCUMULATE: tl.constexpr, COUNT: tl.constexpr,
    BITS: tl.constexpr, BUCKET: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """GROUP buckets a program: the values of one byte of each counter at a time, up to eight sums."""
    EIGHTH: tl.constexpr = BUCKET // 8
    SLOTS: tl.constexpr = 8 // BITS
    BETWEEN: tl.constexpr = BITS * EIGHTH  # from the value in a byte's slot to that in the next
    bucket = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    counter = tl.arange(0, EIGHTH)
    there = bucket < buckets
    byte = bucket[:, None] * (EIGHTH * BITS) + counter[None, :]
    for r in tl.static_range(BITS):
        i = bucket[:, None] * BUCKET + counter[None, :] + r * EIGHTH
        t0 = _start(out, i, i < n, True, ACCUMULATE)
        t1 = _start(out, i + BETWEEN, i + BETWEEN < n, SLOTS > 1, ACCUMULATE)
        t2 = _start(out, i + 2 * BETWEEN, i + 2 * BETWEEN < n, SLOTS > 2, ACCUMULATE)
        t3 = _start(out, i + 3 * BETWEEN, i + 3 * BETWEEN < n, SLOTS > 2, ACCUMULATE)
        t4 = _start(out, i + 4 * BETWEEN, i + 4 * BETWEEN < n, SLOTS > 4, ACCUMULATE)
        t5 = _start(out, i + 5 * BETWEEN, i + 5 * BETWEEN < n, SLOTS > 4, ACCUMULATE)
        t6 = _start(out, i + 6 * BETWEEN, i + 6 * BETWEEN < n, SLOTS > 4, ACCUMULATE)
        t7 = _start(out, i + 7 * BETWEEN, i + 7 * BETWEEN < n, SLOTS > 4, ACCUMULATE)
        for p in tl.static_range(COUNT):
            if p < count:
                weight = tl.load(weights + p)
                step = step_of(tl.load(scales[p] + bucket, there, other=0.0), BITS)[:, None]
                packed = tl.load(codes[p] + byte + r * EIGHTH, there[:, None], other=0).to(tl.int32)
                t0 = _added(t0, packed, step, weight, 0, BITS)
                t1 = _added(t1, packed, step, weight, 1, BITS)
                t2 = _added(t2, packed, step, weight, 2, BITS)
                t3 = _added(t3, packed, step, weight, 3, BITS)
                t4 = _added(t4, packed, step, weight, 4, BITS)
                t5 = _added(t5, packed, step, weight, 5, BITS)
                t6 = _added(t6, packed, step, weight, 6, BITS)
                t7 = _added(t7, packed, step, weight, 7, BITS)
        _finish(out, i, i < n, t0, True)
        _finish(out, i + BETWEEN, i + BETWEEN < n, t1, SLOTS > 1)
        _finish(out, i + 2 * BETWEEN, i + 2 * BETWEEN < n, t2, SLOTS > 2)
        _finish(out, i + 3 * BETWEEN, i + 3 * BETWEEN < n, t3, SLOTS > 2)
        _finish(out, i + 4 * BETWEEN, i + 4 * BETWEEN < n, t4, SLOTS > 4)
        _finish(out, i + 5 * BETWEEN, i + 5 * BETWEEN < n, t5, SLOTS > 4)
        _finish(out, i + 6 * BETWEEN, i + 6 * BETWEEN < n, t6, SLOTS > 4)
        _finish(out, i + 7 * BETWEEN, i + 7 * BETWEEN < n, t7, SLOTS > 4)


@triton.jit
def _lower_bound(indices, length, least):
    """For each lane, the number of leading entries below `least`."""
    low = least * 0
    high = low + length
    while tl.max(high - low) > 0:
        middle = low + (high - low) // 2
        searching = low < high
        below = tl.load(indices + middle, searching, other=0) < least
        low = tl.where(searching & below, middle + 1, low)
        high = tl.where(searching & (below == 0), middle, high)
    return low


@triton.jit
def find_starts(indices, lengths, starts, edges, RANGE: tl.constexpr, COUNT: tl.constexpr, LANES: tl.constexpr):
    """starts[p, b]: the entries of payload p that come before output b * RANGE."""
    edge = tl.program_id(0) * LANES + tl.arange(0, LANES)
    for p in tl.static_range(COUNT):
        if tl.program_id(1) == p:
            # The last edge is n or beyond, maybe past int32: nothing legal lies there.
            least = tl.minimum(edge.to(tl.int64) * RANGE, 0x7FFFFFFF).to(tl.int32)
            found = _lower_bound(indices[p], lengths[p], least)
            tl.store(starts + p * edges + edge, found, edge < edges)


@triton.jit
def sum_sparse(
    indices, values, starts, weights, out, n, edges, count, ACCUMULATE: tl.constexpr, COUNT: tl.constexpr,
    RANGE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * RANGE
    end = tl.minimum(begin + RANGE, n)
    lane = tl.arange(0, LANES)
    if not ACCUMULATE:
        for tile in tl.static_range(RANGE // LANES):
            i = begin + tile * LANES + lane
            tl.store(out + i, tl.zeros([LANES], tl.float32), i < end)
    for p in tl.static_range(COUNT):
        if p < count:
            weight = tl.load(weights + p)
            entry = tl.load(starts + p * edges + tl.program_id(0))
            last = tl.load(starts + p * edges + tl.program_id(0) + 1)
            tl.debug_barrier()  # what the payload before wrote is there
            while entry < last:
                there = entry + lane < last
                index = tl.load(indices[p] + entry + lane, there, other=-1)
                mine = there & (index >= begin) & (index < end)
                x = tl.load(values[p] + entry + lane, mine, other=0.0)
                total = tl.load(out + index, mine, other=0.0)
                tl.store(out + index, total + weight * x, mine)
                entry += LANES


# ---- launchers: contiguous tensors of checked shapes ----


def codes_into(
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    weights: Tensor,
    bits: int,
    bucket: int,
    accumulate: bool,
    out: Tensor,
) -> None:
    """Write or continue the sum, as `fedsynsam.ops.aggregate_codes`; BackendError for a bucket too large."""
    n, buckets = out.shape[0], -(-out.shape[0] // bucket)
    if _is_trivial(codes, accumulate, out):
        return
    check_bucket(bucket)
    size = launch.sum_codes(bucket)
    for first in range(0, len(codes), launch.PAYLOADS):
        (some, of_them), count = _padded(codes, scales, first)
        sum_codes[launch.grid("aggregate_codes", -(-buckets // size.group))](
            some, of_them, weights[first:], out, n, buckets, count, ACCUMULATE=accumulate or first > 0,
            COUNT=len(some), BITS=bits, BUCKET=bucket, GROUP=size.group, num_warps=size.num_warps,
            enable_fp_fusion=False,
        )  # fmt: skip


def sparse_into(
    indices: Sequence[Tensor], values: Sequence[Tensor], weights: Tensor, accumulate: bool, out: Tensor
) -> None:
    """Write or continue the sum, as `fedsynsam.ops.aggregate_sparse`."""
    n, size = out.shape[0], launch.SPARSE_SUM
    if _is_trivial(indices, accumulate, out):
        return
    ranges = -(-n // size.range)
    edges = ranges + 1
    for first in range(0, len(indices), launch.PAYLOADS):
        (some, of_them), count = _padded(indices, values, first)
        lengths = tuple(index.shape[0] for index in some)
        starts = torch.empty(count, edges, dtype=torch.int32, device=out.device)
        find_starts[-(-edges // size.search_lanes), count](
            some, lengths, starts, edges, RANGE=size.range, COUNT=len(some), LANES=size.search_lanes, num_warps=4
        )
        sum_sparse[launch.grid("aggregate_sparse", ranges)](
            some, of_them, starts, weights[first:], out, n, edges, count, ACCUMULATE=accumulate or first > 0,
            COUNT=len(some), RANGE=size.range, LANES=size.lanes, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def _is_trivial(payloads: Sequence[Tensor], accumulate: bool, out: Tensor) -> bool:
    if payloads and out.shape[0] > 0:
        return False
    if not accumulate:
        out.zero_()
    return True


def _padded(
    first: Sequence[Tensor], second: Sequence[Tensor], begin: int
) -> tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], int]:
    """Both lists from `begin` on as tuples of a power of two of places, and how many of them are meant."""
    count = min(launch.PAYLOADS, len(first) - begin)
    places = 1 << (count - 1).bit_length()
    numbers = [begin + min(i, count - 1) for i in range(places)]
    return (tuple(first[i] for i in numbers), tuple(second[i] for i in numbers)), count
