"""sam_norm, sam_perturb and sam_step in Triton: see kernels/reference/sam.py for the contract.

One program handles one chunk of a row. A norm is two-level: each chunk's float64 sum of squares goes to `partials`
[rows, chunks], which the perturbation adds up itself while they are few and `finish_norm` does when they are many.
Elementwise results equal the reference bit for bit, given the same norm (`enable_fp_fusion=False`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch

FLOAT_MAX = tl.constexpr(torch.finfo(torch.float32).max)
FINISH_BLOCK = 1024


@triton.jit
def _chunk(n, chunks, program, BLOCK: tl.constexpr):
    """Row, 64-bit offsets and mask of a program's chunk."""
    row = program // chunks
    column = (program - row * chunks) * BLOCK + tl.arange(0, BLOCK)
    return row, row * n + column, column < n


@triton.jit
def _direction(gradient, synthetic, offsets, mask, beta, keep, MIXED: tl.constexpr):
    """d in float32: the gradient, or beta * synthetic + keep * gradient."""
    d = tl.load(gradient + offsets, mask, other=0.0).to(tl.float32)
    if MIXED:
        d = tl.load(synthetic + offsets, mask, other=0.0).to(tl.float32) * beta + d * keep
    return d


@triton.jit
def chunk_squares(
    weights, gradient, synthetic, partials, n, chunks, beta, keep,
    MIXED: tl.constexpr, ADAPTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    _, offsets, mask = _chunk(n, chunks, program, BLOCK)
    d = _direction(gradient, synthetic, offsets, mask, beta, keep, MIXED)
    if ADAPTIVE:
        d = tl.load(weights + offsets, mask, other=0.0) * d
    d = d.to(tl.float64)
    tl.store(partials + program, tl.sum(d * d))


@triton.jit
def finish_norm(partials, norm, chunks, STORE_SUM: tl.constexpr, BLOCK: tl.constexpr):
    """Add a row's partials in a fixed order; store the norm, or the sum in place of the row's first partial."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < chunks:  # not `range`: the interpreter of Triton 3.6 cannot take its bound from an argument
        sums += tl.load(partials + row * chunks + start + lane, start + lane < chunks, other=0.0)
        start += BLOCK
    total = tl.sum(sums)
    if STORE_SUM:
        tl.store(partials + row * chunks, total)
    else:
        tl.store(norm + row, tl.sqrt(total).to(tl.float32))


@triton.jit
def perturb_chunk(
    weights, gradient, synthetic, norm, partials, out, n, chunks, count, beta, keep, rho,
    MIXED: tl.constexpr, ADAPTIVE: tl.constexpr, PARTIALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """PARTIALS = 0: `norm` holds the row's norm. Else it comes from the row's first `count` <= PARTIALS sums."""
    # Last chunk first: the norm's pass left the end of the rows in the L2 cache.
    program = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    row, offsets, mask = _chunk(n, chunks, program, BLOCK)
    if PARTIALS == 0:
        length = tl.load(norm + row)
    else:
        lane = tl.arange(0, PARTIALS)
        length = tl.sqrt(tl.sum(tl.load(partials + row * chunks + lane, lane < count, other=0.0))).to(tl.float32)
    scale = tl.minimum(tl.maximum(tl.div_rn(rho, length), -FLOAT_MAX), FLOAT_MAX)
    scale = tl.where(length <= FLOAT_MAX, scale, float("nan"))
    w = tl.load(weights + offsets, mask, other=0.0)
    d = _direction(gradient, synthetic, offsets, mask, beta, keep, MIXED)
    if ADAPTIVE:
        d = w * (w * d)
    tl.store(out + offsets, tl.where(length == 0.0, w, w + d * scale), mask)


@triton.jit
def step_chunk(
    weights, gradient, correction, momentum_buffer, total, lr, weight_decay, momentum,
    DECAY: tl.constexpr, CORRECTED: tl.constexpr, MOMENTUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    w = tl.load(weights + offsets, mask, other=0.0)
    u = tl.load(gradient + offsets, mask, other=0.0).to(tl.float32)
    if DECAY:
        u = u + w * weight_decay
    if CORRECTED:
        u = u + tl.load(correction + offsets, mask, other=0.0)
    if MOMENTUM:
        u = tl.load(momentum_buffer + offsets, mask, other=0.0) * momentum + u
        tl.store(momentum_buffer + offsets, u, mask)
    tl.store(weights + offsets, w - u * lr, mask)


# ---- launchers: contiguous tensors of checked shapes; an absent tensor's place is taken by one that is there ----


def _squares(weights: Tensor, gradient: Tensor, synthetic: Tensor | None, beta: float, adaptive: bool) -> Tensor:
    """Return the partial sums, float64 [rows, chunks]."""
    (rows, n), size = weights.shape, launch.sam(weights.shape[1])
    partials = torch.empty(rows, size.chunks, dtype=torch.float64, device=weights.device)
    if partials.numel() > 0:
        chunk_squares[(partials.numel(),)](
            weights, gradient, gradient if synthetic is None else synthetic, partials, n, size.chunks, beta,
            1.0 - beta, MIXED=synthetic is not None, ADAPTIVE=adaptive, BLOCK=size.block, num_warps=size.num_warps,
            enable_fp_fusion=False,
        )  # fmt: skip
    return partials


def _finish(partials: Tensor, norm: Tensor | None) -> None:
    rows, chunks = partials.shape
    finish_norm[(rows,)](
        partials, partials if norm is None else norm, chunks, STORE_SUM=norm is None, BLOCK=FINISH_BLOCK, num_warps=4,
        enable_fp_fusion=False,
    )  # fmt: skip


def norm_into(
    weights: Tensor, gradient: Tensor, synthetic: Tensor | None, beta: float, adaptive: bool, out: Tensor
) -> None:
    """Write ‖d‖ of each row (‖w·d‖ if `adaptive`) into `out`, float32 [rows]."""
    if out.numel() > 0:
        _finish(_squares(weights, gradient, synthetic, beta, adaptive), out)


def perturb_into(
    weights: Tensor,
    gradient: Tensor,
    synthetic: Tensor | None,
    norm: Tensor | None,
    rho: float,
    beta: float,
    adaptive: bool,
    out: Tensor,
) -> None:
    """Write w + (ρ/‖d‖)·d of each row (adaptive: w + (ρ/‖w·d‖)·w·(w·d)) into `out`, float32 [rows, n]."""
    if out.numel() == 0:
        return
    (rows, n), size = weights.shape, launch.sam(weights.shape[1])
    partials, count = norm, size.chunks
    if norm is None:
        partials = _squares(weights, gradient, synthetic, beta, adaptive)
        if size.inline_partials < size.chunks:
            _finish(partials, None)
            count = 1
    perturb_chunk[(rows * size.chunks,)](
        weights, gradient, gradient if synthetic is None else synthetic, norm if norm is not None else out, partials,
        out, n, size.chunks, count, beta, 1.0 - beta, rho, MIXED=synthetic is not None, ADAPTIVE=adaptive,
        PARTIALS=size.inline_partials if norm is None else 0, BLOCK=size.block, num_warps=size.num_warps,
        enable_fp_fusion=False,
    )  # fmt: skip


def step_into(
    weights: Tensor,
    gradient: Tensor,
    correction: Tensor | None,
    momentum_buffer: Tensor | None,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """Take one step in place: w ← w − lr·u, see `fedsynsam.ops.sam_step`."""
    if weights.numel() == 0:
        return
    size = launch.sam(weights.numel())
    step_chunk[(size.chunks,)](
        weights, gradient, weights if correction is None else correction,
        weights if momentum_buffer is None else momentum_buffer, weights.numel(), lr, weight_decay, momentum,
        DECAY=weight_decay != 0, CORRECTED=correction is not None, MOMENTUM=momentum_buffer is not None,
        BLOCK=size.block, num_warps=size.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
