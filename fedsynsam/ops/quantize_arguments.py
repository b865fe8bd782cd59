"""What `quantize`, `dequantize` and the aggregations accept: one typed error per wrong argument, before any launch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from .arguments import check_tensor

NORMS = {"max": 0, "l2": 1}  # fedsynsam::Norm
ROUNDINGS = {"stochastic": 0, "nearest": 1}  # fedsynsam::Rounding
BITS = (1, 2, 4, 8)
MIN_BUCKET, MAX_BUCKET = 8, 65536


def bucket_count(n: int, bucket: int) -> int:
    """Return ⌈n / bucket⌉, the number of scales of a row."""
    return (n + bucket - 1) // bucket


def code_bytes(n: int, bits: int, bucket: int) -> int:
    """Return the bytes of a row's codes, padding of the last bucket included."""
    return bucket_count(n, bucket) * (bucket * bits // 8)


def check_coding(bits: int, bucket: int) -> None:
    if type(bits) is not int or bits not in BITS:
        raise ArgumentError(f"bits is {bits!r}; expected 1, 2, 4 or 8")
    legal = isinstance(bucket, int) and MIN_BUCKET <= bucket <= MAX_BUCKET and bucket & (bucket - 1) == 0
    if not legal:
        raise ArgumentError(f"bucket is {bucket!r}; expected a power of two from {MIN_BUCKET} to {MAX_BUCKET}")


def check_word(name: str, word: str, known: Collection[str]) -> None:
    if not isinstance(word, str) or word not in known:
        raise ArgumentError(f"{name} is {word!r}; expected one of {', '.join(known)}")


def check_size(name: str, n: int) -> None:
    # torch.SymInt is no int, but a length that torch.compile traces.
    if isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or n < 0:
        raise ArgumentError(f"{name} is {n!r}; expected a length, 0 or more")


def check_pairs(
    names: tuple[str, str],
    first: Sequence[Any],
    second: Sequence[Any],
    dtypes: tuple[torch.dtype, torch.dtype],
    sizes: tuple[int, int] | None,
    device: torch.device,
) -> None:
    """Check the tensors of two lists, all 1-D: of the given sizes, or (None) pairwise of the same size."""
    if len(first) != len(second):
        counts = f"{names[0]} has {len(first)} entries but {names[1]} has {len(second)}"
        raise ArgumentError(f"{counts}; expected one of each per payload")
    for i, pair in enumerate(zip(first, second, strict=True)):
        own = pair[0].numel() if isinstance(pair[0], Tensor) else 0
        for name, tensor, dtype, size in zip(names, pair, dtypes, sizes or (own, own), strict=True):
            check_tensor(f"{name}[{i}]", tensor, (size,), (dtype,), device)


def check_weights(weights: Any, count: int) -> None:
    if not isinstance(weights, Tensor):
        raise ArgumentError(f"weights is a {type(weights).__name__}; expected a float32 tensor, one weight a payload")
    check_tensor("weights", weights, (count,), (torch.float32,), weights.device)


def check_accumulate(accumulate: bool, out: Tensor | None) -> None:
    if accumulate and out is None:
        raise ArgumentError("accumulate is True but out was not given; pass the sum to continue as out")
