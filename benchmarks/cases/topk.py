"""Exact top-k with a residual, of whole rows and of chunks of 4096."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsynsam.ops import TopK, chunk_count_kept, chunk_topk, count_kept, topk

from ..bytes import Sizes
from ..bytes import floor as floor_bytes
from ..case import Built, Case, like, normal

CHUNK = 4096
DENSITIES = (0.001, 0.01, 0.1)


def floor(rows: int, n: int) -> float:
    """Read the update, read the residual, write the residual."""
    return floor_bytes("topk", rows, Sizes(n=n))


def outputs(update: Tensor, k: int) -> TopK:
    """Return outputs for `update` [C, n] whose memory has been touched."""
    rows = update.shape[0]
    indices = torch.zeros(rows, k, dtype=torch.int32, device=update.device)
    flags = torch.zeros(rows, dtype=torch.bool, device=update.device)
    return TopK(indices, torch.zeros(rows, k, device=update.device), *like([update]), flags)


def select_eager(update: Tensor, residual: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The job in PyTorch: add, top-k of the magnitudes, gather, and zero what was sent."""
    a = update + residual
    indices = torch.topk(a.abs(), k, dim=-1, sorted=False).indices
    return indices, a.gather(-1, indices), a.scatter(-1, indices, 0.0)


def build_global(density: float, rows: int, n: int, device: torch.device) -> Built:
    update, residual = normal(rows, n, device, 1), normal(rows, n, device, 2)
    k = count_kept(n, density)
    out = outputs(update, k)
    magnitude = update.abs()
    libraries = {"torch.topk alone": partial(torch.topk, magnitude, k, dim=-1, sorted=False)}
    if n > 1:
        libraries["torch.kthvalue alone"] = partial(torch.kthvalue, magnitude, n - k + 1, dim=-1)
    if device.type == "cpu":
        libraries["numpy.partition alone"] = partial(np.partition, magnitude.numpy(), n - k, axis=-1)
    return Built(
        run=lambda: topk(update, residual, k=k, out=out),
        allocating=lambda: topk(update, residual, k=k),
        eager=lambda: select_eager(update, residual, k),
        libraries=libraries,
    )


def build_chunk(density: float, rows: int, n: int, device: torch.device) -> Built:
    update, residual = normal(rows, n, device, 1), normal(rows, n, device, 2)
    out = outputs(update, chunk_count_kept(n, density, CHUNK))
    whole = n // CHUNK * CHUNK  # the eager pipeline is spared the short tail
    chunks, chunk_residuals = (t[:, :whole].reshape(rows, -1, CHUNK) for t in (update, residual))
    k = count_kept(CHUNK, density)
    return Built(
        run=lambda: chunk_topk(update, residual, density=density, chunk=CHUNK, out=out),
        allocating=lambda: chunk_topk(update, residual, density=density, chunk=CHUNK),
        eager=lambda: select_eager(chunks, chunk_residuals, k),
    )


def label(op: str, density: float) -> str:
    """Return the label of a case, which the coding of its indices refers to."""
    return f"{op} {density:g} + residual"


CASES = tuple(
    Case(
        op=op,
        label=label(op, density),
        floor=floor,
        build=partial(build, density),
        density=density,
        goal=op,
        compiled=density == 0.01,
    )
    for op, build in (("topk", build_global), ("chunk_topk", build_chunk))
    for density in DENSITIES
)
