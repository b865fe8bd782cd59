"""Elias-Fano coding of the indices of a top-k."""

from __future__ import annotations

from functools import partial

import torch

from fedsynsam import use_backend
from fedsynsam.ops import count_kept, decode_indices, encode_indices, index_words, topk
from fedsynsam.ops.index_coding import DecodedIndices

from ..bytes import Sizes
from ..bytes import floor as floor_bytes
from ..case import Built, Case, like, normal
from .topk import DENSITIES
from .topk import label as topk_label


def floor(density: float, rows: int, n: int) -> float:
    """The indices as int32 and the packed words, one read and the other written."""
    k = count_kept(n, density)
    return floor_bytes("encode_indices", rows, Sizes(n=n, k=k))


def build_encode(density: float, rows: int, n: int, device: torch.device) -> Built:
    k = count_kept(n, density)
    indices = topk(normal(rows, n, device, 1), k=k).indices
    out = torch.zeros(rows, index_words(n, k), dtype=torch.int32, device=device)
    return Built(
        run=lambda: [encode_indices(indices, n=n, out=out)],
        allocating=lambda: encode_indices(indices, n=n),
        eager=partial(_on_reference, lambda: encode_indices(indices, n=n)),
    )


def build_decode(density: float, rows: int, n: int, device: torch.device) -> Built:
    k = count_kept(n, density)
    indices = topk(normal(rows, n, device, 1), k=k).indices
    words = encode_indices(indices, n=n)
    out = DecodedIndices(*like([indices]), torch.zeros(rows, dtype=torch.bool, device=device))
    return Built(
        run=lambda: decode_indices(words, n=n, k=k, out=out),
        allocating=lambda: decode_indices(words, n=n, k=k),
        eager=partial(_on_reference, lambda: decode_indices(words, n=n, k=k)),
    )


def _on_reference(function):  # type: ignore[no-untyped-def]
    """The PyTorch pipeline of this job is the reference itself: there is no shorter one."""
    with use_backend("reference"):
        return function()


CASES = tuple(
    Case(
        op="index_coding",
        label=f"{verb} indices {density:g}",
        floor=partial(floor, density),
        build=partial(build, density),
        density=density,
        kernel=f"{verb}_indices",
        coding_of=topk_label("topk", density),
    )
    for density in DENSITIES
    for verb, build in (("encode", build_encode), ("decode", build_decode))
)
