"""Bucketed quantization in plain PyTorch: the definition of what every other backend must give, bit for bit.

Each row is cut into buckets of B values (the last one padded with zeros). With a = float32(update) + residual:

    scale = max |a|, or ‖a‖₂ (float64 squares summed by a halving tree, square root to float32, at most FLT_MAX)
    y     = a · (L / scale),  L = 2^(bits−1) − 1                         each operation rounded once, to nearest
    q     = ⌊y⌋ + [h < ⌊(y − ⌊y⌋)·65536⌋], or y rounded half to even; then clamped to [−L, L]
    x̂     = q · step,  step = scale / L
    1 bit: L = 1, p = (y + 1)/2, x̂ = +scale iff h < ⌊p·65536⌋ (nearest: iff not a < 0), else −scale

h is a uniform 16-bit number of Philox4x32-10, so x̂ is unbiased to 2⁻¹⁶ of a step. A bucket whose scale is below
2⁻¹²⁰ is a zero bucket: scale 0, codes 0, x̂ = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLT_MAX = torch.finfo(torch.float32).max
ZERO_BELOW = 2.0**-120
# FLT_MAX / 127 rounds up, and 127 times that would be infinite: the largest step whose 127-fold is finite.
LARGEST_STEP_8BIT = 8454659.0 * 2.0**98

_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF


def levels(bits: int) -> int:
    """Return L, the number of levels on each side of zero (1 for one bit)."""
    return max(1, 2 ** (bits - 1) - 1)


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor], rounds: int = 10) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox4x32 for int64 tensors that hold 32-bit words (broadcast together).

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * _PHILOX_M0, c2 * _PHILOX_M1  # the wrapped int64 has all 64 bits of the product
        high0, high1 = (product0 >> 32) & _WORD, (product1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _WORD, high0 ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + _PHILOX_W0) & _WORD, (k1 + _PHILOX_W1) & _WORD
    return c0, c1, c2, c3


def uniform16(seeds: Tensor, buckets: int, bucket: int) -> Tensor:
    """Return the 16-bit draws [C, buckets, bucket] (int64) of rows with the int64 `seeds` [C].

    Counter c = bucket_index·(bucket/8) + j serves eight values: half l of its 128 bits belongs to j + l·bucket/8.
    """
    eighth = bucket // 8
    block = torch.arange(buckets * eighth, device=seeds.device)
    key = ((seeds & _WORD)[:, None], ((seeds >> 32) & _WORD)[:, None])
    zero = torch.zeros_like(block)
    words = philox4x32((block & _WORD, block >> 32, zero, zero), key)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    rows = seeds.shape[0]
    return torch.stack([half.reshape(rows, buckets, eighth) for half in halves], dim=2).reshape(rows, buckets, bucket)


def bucket_scales(a: Tensor, norm: str) -> Tensor:
    """Return the scales [C, nb] of finite values a [C, nb, B]; 0 for a zero bucket."""
    if norm == "max":
        scales = a.abs().amax(dim=2)
    else:
        squares = a.double().square()
        while squares.shape[2] > 1:
            half = squares.shape[2] // 2
            squares = squares[:, :, :half] + squares[:, :, half:]
        scales = squares[:, :, 0].sqrt().float().clamp(max=FLT_MAX)
    return torch.where(scales < ZERO_BELOW, torch.zeros_like(scales), scales)


def bucket_steps(scales: Tensor, bits: int) -> Tensor:
    """Return step = scale / L, kept so small that L · step is finite."""
    steps = scales / torch.full_like(scales, levels(bits))  # a Python divisor may become a multiplication
    return steps.clamp(max=LARGEST_STEP_8BIT) if bits == 8 else steps


def levels_of(a: Tensor, scales: Tensor, draws: Tensor | None, bits: int) -> Tensor:
    """Return q (int64, [C, nb, B]) of values a; `draws` None means nearest. One bit: 0 is +scale, 1 is −scale."""
    top = levels(bits)
    zero = (scales == 0)[:, :, None]
    safe = torch.where(scales == 0, torch.ones_like(scales), scales)
    y = a * (torch.full_like(safe, top) / safe)[:, :, None]
    if bits == 1:
        up = a >= 0 if draws is None else draws < (((y + 1.0) * 0.5) * 65536.0).floor().long()
        q = (~up).long()
    elif draws is None:
        q = y.round().long().clamp(-top, top)
    else:
        floor = y.floor()
        q = floor.long() + (draws < ((y - floor) * 65536.0).floor().long())
        q = q.clamp(-top, top)
    return torch.where(zero, torch.zeros_like(q), q)


def values_of(q: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return x̂ [C, nb, B] of q as `levels_of` gives it."""
    if bits == 1:
        return torch.where(q == 1, -scales[:, :, None], scales[:, :, None])
    return q.float() * bucket_steps(scales, bits)[:, :, None]


def pack(q: Tensor, bits: int) -> Tensor:
    """Return codes [C, nb·B·bits/8] uint8: byte j of a bucket holds value j + l·B/m at bit l·bits, m = 8/bits."""
    rows, buckets, bucket = q.shape
    per_byte = 8 // bits
    codes = (q & (2**bits - 1)).reshape(rows, buckets, per_byte, bucket // per_byte)
    shifts = torch.arange(per_byte, device=q.device) * bits
    return (codes << shifts[:, None]).sum(dim=2).to(torch.uint8).reshape(rows, buckets * bucket // per_byte)


def unpack(codes: Tensor, bits: int, bucket: int) -> Tensor:
    """Return q [C, nb, B] (int64) of packed codes: signed for bits > 1, the bit itself for one bit."""
    rows, per_byte = codes.shape[0], 8 // bits
    packed = codes.long().reshape(rows, codes.shape[1] * per_byte // bucket, 1, bucket // per_byte)
    shifts = torch.arange(per_byte, device=codes.device) * bits
    q = ((packed >> shifts[:, None]) & (2**bits - 1)).reshape(rows, packed.shape[1], bucket)
    return q if bits == 1 else torch.where(q >= 2 ** (bits - 1), q - 2**bits, q)


def into_buckets(rows: Tensor, bucket: int) -> Tensor:
    """Return [C, n] as [C, nb, bucket], padded with zeros."""
    count, n = rows.shape
    buckets = -(-n // bucket)
    return torch.nn.functional.pad(rows, (0, buckets * bucket - n)).reshape(count, buckets, bucket)


def quantize(
    update: Tensor, seeds: Tensor, residual: Tensor | None, bits: int, bucket: int, norm: str, rounding: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (codes, scales, new residual, nonfinite) of rows [C, n]; see `fedsynsam.ops.quantize`."""
    rows, n = update.shape
    flat = update.float() if residual is None else update.float() + residual
    nonfinite = ~flat.isfinite().all(dim=1)
    a = into_buckets(torch.where(nonfinite[:, None], torch.zeros_like(flat), flat), bucket)  # flagged: zero buckets
    scales = bucket_scales(a, norm) if a.numel() else a.new_zeros(a.shape[:2])
    draws = uniform16(seeds, a.shape[1], bucket) if rounding == "stochastic" else None
    q = levels_of(a, scales, draws, bits)
    codes = pack(_zero_padding(q, n), bits)
    if residual is None:
        return codes, scales, flat.new_empty((rows, 0)), nonfinite
    # One bit can be off by nearly two scales: saturate instead of leaving an infinite residual behind.
    lost = (a - values_of(q, scales, bits)).clamp(-FLT_MAX, FLT_MAX).flatten(1)[:, :n]
    return codes, scales, torch.where(nonfinite[:, None], residual, lost), nonfinite


def _zero_padding(q: Tensor, n: int) -> Tensor:
    """Return q with the codes of the last bucket's padding set to 0 (one bit would draw them)."""
    position = torch.arange(q.shape[1] * q.shape[2], device=q.device).reshape(q.shape[1], q.shape[2])
    return torch.where(position < n, q, torch.zeros_like(q))


def dequantize(codes: Tensor, scales: Tensor, n: int, bits: int, bucket: int) -> Tensor:
    """Return x̂ [C, n] float32 of `quantize`'s codes and scales."""
    q = unpack(codes, bits, bucket)
    return values_of(q, scales, bits).flatten(1)[:, :n].contiguous()
