"""Definition of `topk` and `chunk_topk` in plain PyTorch, for any device.

    a = float32(update) + residual                    (one rounding; without a residual: the bits of float32(update))
    the k largest |a| of a row (or of each chunk), ties to the lowest index; -0 ties with +0
    indices ascending, values = the bits of a there, new residual = a with 0 there

Magnitudes are compared as integers (the bits without the sign), so that denormals count whatever the FPU's mode.
A row of `a` that holds NaN or infinity is flagged: indices 0..k-1, values 0, residual as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

TopKResult = tuple[Tensor, Tensor, Tensor, Tensor]


def topk(update: Tensor, residual: Tensor | None, k: int) -> TopKResult:
    """Return (indices [C, k] int32, values [C, k] f32, residual [C, n] f32, nonfinite [C] bool) of rows [C, n]."""
    a = _accumulate(update, residual)
    return _emit(a, residual, _largest(a, k))


def chunk_topk(update: Tensor, residual: Tensor | None, chunk: int, k_chunk: int, k_tail: int) -> TopKResult:
    """The same with k_chunk of every full chunk and k_tail of the n % chunk elements behind them."""
    a = _accumulate(update, residual)
    rows, n = a.shape
    full = n // chunk
    body = _largest(a[:, : full * chunk].reshape(rows * full, chunk), k_chunk).view(rows, full, k_chunk)
    body = body + torch.arange(full, device=a.device).view(1, full, 1) * chunk
    tail = _largest(a[:, full * chunk :], k_tail) + full * chunk
    return _emit(a, residual, torch.cat([body.reshape(rows, full * k_chunk), tail], dim=1))


def _accumulate(update: Tensor, residual: Tensor | None) -> Tensor:
    a = update.to(torch.float32)
    return a.clone() if residual is None else a + residual


def _largest(a: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the k largest magnitudes of each row; a stable sort keeps the lowest of a tie."""
    magnitude = a.contiguous().view(torch.int32) & 0x7FFFFFFF
    order = torch.sort(magnitude, dim=1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=1).values


def _emit(a: Tensor, residual: Tensor | None, indices: Tensor) -> TopKResult:
    nonfinite = ~torch.isfinite(a).all(dim=1)
    flagged = nonfinite.view(-1, 1)
    untouched = torch.zeros_like(a) if residual is None else residual
    first = torch.arange(indices.shape[1], device=a.device).expand_as(indices)
    values = a.gather(1, indices)
    return (
        torch.where(flagged, first, indices).to(torch.int32),
        torch.where(flagged, torch.zeros_like(values), values),
        torch.where(flagged, untouched, a.scatter(1, indices, 0.0)),
        nonfinite,
    )
