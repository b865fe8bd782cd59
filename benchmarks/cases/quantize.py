"""Quantization with stochastic rounding to 1, 2, 4 and 8 bits, with and without residual, and its inverse."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fedsynsam.ops import Quantized, dequantize, quantize

from ..bytes import Sizes
from ..bytes import floor as floor_bytes
from ..case import Built, Case, like, normal

BUCKET = 512
BITS = (1, 2, 4, 8)


def floor(op: str, bits: int, rows: int, n: int) -> float:
    """Codes, one scale a bucket, and what is read and written in float32."""
    return floor_bytes(op, rows, Sizes(n=n, b=bits, B=BUCKET))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack the codes (uint8, each below 2**bits) of neighbours into bytes."""
    packed = codes.view(*codes.shape[:-1], -1, 8 // bits)
    result = packed[..., 0].clone()
    for place in range(1, 8 // bits):
        result |= packed[..., place] << (place * bits)
    return result


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes of `pack` as uint8."""
    mask = (1 << bits) - 1
    return torch.stack([(packed >> (place * bits)) & mask for place in range(8 // bits)], dim=-1).flatten(-2)


def quantize_eager(
    update: Tensor, residual: Tensor | None, bits: int
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """The job in PyTorch: scale, draw, round, pack, and the residual of what was lost. n is a multiple of BUCKET."""
    a = update if residual is None else update + residual
    buckets = a.view(a.shape[0], -1, BUCKET)
    scale = buckets.abs().amax(dim=-1, keepdim=True)
    levels = max(1, 2 ** (bits - 1) - 1)
    inverse = torch.where(scale > 0, levels / scale, 0.0)
    if bits == 1:
        negative = torch.rand_like(buckets) >= (buckets * inverse + 1) * 0.5
        rounded = 1.0 - 2.0 * negative
        codes = negative.to(torch.uint8)
    else:
        rounded = torch.floor(buckets * inverse + torch.rand_like(buckets)).clamp_(-levels, levels)
        codes = rounded.to(torch.int8).view(torch.uint8) & ((1 << bits) - 1)
    packed = pack(codes, bits)
    if residual is None:
        return packed, scale
    return packed, scale, (buckets - rounded * (scale / levels)).view_as(a)


def dequantize_eager(packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The inverse in PyTorch. packed: uint8 [C, buckets, bytes], scale: [C, buckets, 1]."""
    codes = unpack(packed, bits)
    if bits == 1:
        values = 1.0 - 2.0 * codes.float()
    else:
        shift = 8 - bits  # the sign is the code's top bit: shift it to the byte's, and back with its sign
        values = ((codes << shift).view(torch.int8) >> shift).float()
    return (values * (scale / max(1, 2 ** (bits - 1) - 1))).flatten(1)


def outputs(update: Tensor, bits: int, residual: Tensor | None) -> Quantized:
    """Return outputs whose memory has been touched."""
    rows, n = update.shape
    buckets = -(-n // BUCKET)
    codes = torch.zeros(rows, buckets * BUCKET * bits // 8, dtype=torch.uint8, device=update.device)
    scales = torch.zeros(rows, buckets, device=update.device)
    new = torch.zeros_like(update) if residual is not None else update.new_zeros(rows, 0)
    return Quantized(codes, scales, new, torch.zeros(rows, dtype=torch.bool, device=update.device))


def row_seeds(rows: int, device: torch.device) -> Tensor:
    """Return one seed a row."""
    return torch.arange(rows, dtype=torch.int64, device=device) + 7


def build_quantize(bits: int, with_residual: bool, rows: int, n: int, device: torch.device) -> Built:
    update, seeds = normal(rows, n, device, 1), row_seeds(rows, device)
    residual = normal(rows, n, device, 2) if with_residual else None
    out = outputs(update, bits, residual)
    whole = n // BUCKET * BUCKET  # the eager pipeline is spared the short last bucket
    aligned = update[:, :whole].contiguous()
    aligned_residual = residual[:, :whole].contiguous() if residual is not None else None
    return Built(
        run=lambda: quantize(update, seeds, residual, bits=bits, bucket=BUCKET, out=out),
        allocating=lambda: quantize(update, seeds, residual, bits=bits, bucket=BUCKET),
        eager=lambda: quantize_eager(aligned, aligned_residual, bits),
    )


def build_dequantize(bits: int, rows: int, n: int, device: torch.device) -> Built:
    update = normal(rows, n, device, 1)
    codes, scales, _, _ = quantize(update, row_seeds(rows, device), bits=bits, bucket=BUCKET)
    (out,) = like([update])
    eager_packed, eager_scale = quantize_eager(update[:, : n // BUCKET * BUCKET].contiguous(), None, bits)[:2]
    return Built(
        run=lambda: [dequantize(codes, scales, n=n, bits=bits, bucket=BUCKET, out=out)],
        allocating=lambda: dequantize(codes, scales, n=n, bits=bits, bucket=BUCKET),
        eager=lambda: dequantize_eager(eager_packed, eager_scale, bits),
    )


CASES = (
    *(
        Case(
            op="quantize",
            label=f"quantize {bits} bit{' + residual' if with_residual else ''}",
            floor=partial(floor, "quantize + residual" if with_residual else "quantize", bits),
            build=partial(build_quantize, bits, with_residual),
            bits=bits,
            goal="quantize" if bits == 4 else None,
            compiled=bits == 4,
        )
        for bits in BITS
        for with_residual in (False, True)
    ),
    *(
        Case(
            op="dequantize",
            label=f"dequantize {bits} bit",
            floor=partial(floor, "dequantize", bits),
            build=partial(build_dequantize, bits),
            bits=bits,
        )
        for bits in BITS
    ),
)
