"""The weighted sum of 32 payloads: 4-bit codes, and sparse values at density 0.01."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsynsam.ops import aggregate_codes, aggregate_sparse, count_kept, quantize

from ..bytes import Sizes
from ..bytes import floor as floor_bytes
from ..case import Built, Case, normal
from .quantize import BUCKET, dequantize_eager, quantize_eager, row_seeds

PAYLOADS = 32
BITS = 4
DENSITY = 0.01


def floor_codes(rows: int, n: int) -> float:
    """Read every payload's codes and scales, write the sum once."""
    return floor_bytes("aggregate_codes", 1, Sizes(n=rows * n, b=BITS, B=BUCKET, C=PAYLOADS))


def floor_sparse(rows: int, n: int) -> float:
    """Read every payload's indices and values, write the sum once."""
    k = count_kept(rows * n, DENSITY)
    return floor_bytes("aggregate_sparse", 1, Sizes(n=rows * n, k=k, C=PAYLOADS))


def _weights(device: torch.device) -> Tensor:
    return torch.linspace(0.5, 1.5, PAYLOADS, device=device) / PAYLOADS


def build_codes(rows: int, n: int, device: torch.device) -> Built:
    n, update = rows * n, normal(1, rows * n, device, 1)
    payloads = [quantize(update, row_seeds(1, device) + client, bits=BITS, bucket=BUCKET) for client in range(PAYLOADS)]
    codes, scales = [p.codes[0] for p in payloads], [p.scales[0] for p in payloads]
    weights, out = _weights(device), torch.zeros(n, device=device)
    aligned = update[:, : n // BUCKET * BUCKET].contiguous()
    packed, scale = quantize_eager(aligned, None, BITS)[:2]
    eager_payloads = [(packed.clone(), scale.clone()) for _ in range(PAYLOADS)]
    scalars = weights.tolist()

    def eager() -> Tensor:
        total = torch.zeros_like(aligned)
        for (payload, payload_scale), weight in zip(eager_payloads, scalars, strict=True):
            total.add_(dequantize_eager(payload, payload_scale, BITS), alpha=weight)
        return total

    return Built(
        run=lambda: [aggregate_codes(codes, scales, weights, n=n, bits=BITS, bucket=BUCKET, out=out)],
        allocating=lambda: aggregate_codes(codes, scales, weights, n=n, bits=BITS, bucket=BUCKET),
        eager=eager,
    )


def build_sparse(rows: int, n: int, device: torch.device) -> Built:
    n = rows * n
    k = count_kept(n, DENSITY)
    generator = torch.Generator(device).manual_seed(3)
    spacing = n // k
    # One index in each stretch of n / k: distinct and ascending without sorting 32 permutations.
    indices = [
        (
            torch.arange(k, device=device) * spacing + torch.randint(spacing, (k,), device=device, generator=generator)
        ).int()
        for _ in range(PAYLOADS)
    ]
    values = [normal(1, k, device, client)[0] for client in range(PAYLOADS)]
    weights, out = _weights(device), torch.zeros(n, device=device)
    wide = [index.long() for index in indices]
    scalars = weights.tolist()

    def eager() -> Tensor:
        total = torch.zeros(n, device=device)
        for index, value, weight in zip(wide, values, scalars, strict=True):
            total.index_add_(0, index, value, alpha=weight)
        return total

    return Built(
        run=lambda: [aggregate_sparse(indices, values, weights, n=n, out=out)],
        allocating=lambda: aggregate_sparse(indices, values, weights, n=n),
        eager=eager,
    )


CASES = (
    Case(
        op="aggregate",
        label=f"aggregate {PAYLOADS} x {BITS} bit",
        floor=floor_codes,
        build=build_codes,
        bits=BITS,
        kernel="aggregate_codes",
        goal="aggregate",
    ),
    Case(
        op="aggregate",
        label=f"aggregate {PAYLOADS} x sparse {DENSITY:g}",
        floor=floor_sparse,
        build=build_sparse,
        density=DENSITY,
        kernel="aggregate_sparse",
        goal="aggregate",
    ),
)
