"""Weighted sums of payloads in plain PyTorch: acc ← acc + (w · x), two roundings, payload after payload."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .quantize import dequantize


def aggregate_sparse(indices: Sequence[Tensor], values: Sequence[Tensor], weights: Tensor, start: Tensor) -> Tensor:
    """Return start [n] + Σ weights[i]·scatter(indices[i], values[i]), added in list order."""
    total = start.clone()
    for i, (index, value) in enumerate(zip(indices, values, strict=True)):
        index = index.long()
        total[index] = total[index] + weights[i] * value
    return total


def aggregate_codes(
    codes: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor, start: Tensor, bits: int, bucket: int
) -> Tensor:
    """Return start [n] + Σ weights[i]·dequantize(codes[i], scales[i]), added in list order."""
    total = start.clone()
    for i, (code, scale) in enumerate(zip(codes, scales, strict=True)):
        total = total + weights[i] * dequantize(code[None], scale[None], start.shape[0], bits, bucket)[0]
    return total
