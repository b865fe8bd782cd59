"""A whole model's update to bytes: compress (residual, top-k, quantize) and encode, as a client does it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import fedsynsam as fs

from ..case import Built, Case, normal
from .quantize import BUCKET, quantize_eager
from .topk import floor, select_eager

DENSITY, BITS = 0.01, 4
SPEC = f"topk:{DENSITY:g}+quantize:{BITS}"
TENSORS = 48  # of growing sizes, like the layers of a convolutional network


def model_update(n: int, device: torch.device) -> dict[str, Tensor]:
    """Return tensors of n elements in all, each about 8 % larger than the one before."""
    shares = torch.tensor([1.08**i for i in range(TENSORS)], dtype=torch.float64).cumsum(0)
    edges = [0, *(int(edge) for edge in (shares / shares[-1] * n).round())]
    flat = normal(1, n, device, 1)[0]
    return {f"layer{i}.weight": flat[a:b] for i, (a, b) in enumerate(pairwise(edges))}


def build(rows: int, n: int, device: torch.device) -> Built:
    n = rows * n
    update = model_update(n, device)
    compressor = fs.compressor(SPEC)
    _, state = compressor.compress(update, compressor.init(update), seed=7)  # so that there is a residual
    residual = torch.zeros(1, n, device=device)
    k = fs.ops.count_kept(n, DENSITY)

    def run() -> list[Tensor]:
        payload, _ = compressor.compress(update, state, seed=8)
        return [torch.frombuffer(bytearray(payload.encode()), dtype=torch.uint8)]

    def eager() -> bytes:
        flat = torch.cat([tensor.flatten() for tensor in update.values()])[None]
        indices, values, _ = select_eager(flat, residual, k)
        values = torch.nn.functional.pad(values, (0, -k % BUCKET))
        codes, scales = quantize_eager(values, None, BITS)[:2]
        return b"".join(t.cpu().numpy().tobytes() for t in (indices.int(), codes, scales))

    return Built(run=run, eager=eager)


CASES = (
    Case(
        op="end_to_end",
        label=f"compress + encode {SPEC}",
        floor=floor,
        build=build,
        density=DENSITY,
        bits=BITS,
        kernel="topk",
    ),
)
