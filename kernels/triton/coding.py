"""What the Triton kernels of quantize, dequantize and aggregate_codes share: levels, and the layout of codes."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference import quantize as reference

LARGEST_STEP_8BIT = tl.constexpr(reference.LARGEST_STEP_8BIT)


@triton.constexpr_function
def levels(bits: int) -> int:
    """L, the levels on each side of zero; 1 for one bit."""
    return 1 if bits == 1 else (1 << (bits - 1)) - 1


@triton.jit
def step_of(scale, BITS: tl.constexpr):
    """The distance of two levels."""
    step = tl.div_rn(scale, scale * 0.0 + levels(BITS))
    if BITS == 8:
        step = tl.minimum(step, LARGEST_STEP_8BIT)
    return step


@triton.jit
def value_of(q, step, BITS: tl.constexpr):
    """The value of level q; for one bit, of the bit q, and step is the scale."""
    if BITS == 1:
        return tl.where(q != 0, -step, step)
    return q.to(tl.float32) * step


@triton.jit
def level_at(byte, SLOT: tl.constexpr, BITS: tl.constexpr):
    """The level (for one bit: the bit) at bit SLOT * BITS of bytes given as int32."""
    if BITS == 1:
        return (byte >> SLOT) & 1
    return (byte << (32 - BITS - SLOT * BITS)) >> (32 - BITS)
