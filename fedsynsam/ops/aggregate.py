"""Weighted sums of payloads without a dense copy of any of them: `aggregate_sparse`, `aggregate_codes`.

    out = Σᵢ weights[i] · decompress(payloadᵢ)

For every element acc ← acc + (wᵢ·xᵢ), two float32 roundings a payload, in list order, starting from 0 (with accumulate:
from what is in out). So every backend and every number of threads gives the same bits, and splitting a list into two
calls changes nothing. Payloads arrive one by one and may differ in length, hence lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..kernels.reference import aggregate as reference
from . import backend
from .arguments import check_apart, check_tensor, check_written
from .extension import launch, loaded
from .library import nothing, register
from .quantize_arguments import (
    bucket_count,
    check_accumulate,
    check_coding,
    check_pairs,
    check_size,
    check_weights,
    code_bytes,
)

# ---- public functions ----


def aggregate_sparse(
    indices: Sequence[Tensor],
    values: Sequence[Tensor],
    weights: Tensor,
    *,
    n: int,
    out: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Return Σ weights[i]·scatter(indices[i], values[i]), float32 [n].

    indices: int32 [kᵢ] each, strictly ascending in [0, n): trusted here, for the wire layer has validated them (others
    give a wrong sum or an error, never a write outside of out). values: float32 [kᵢ] each. weights: float32 [C].
    out: contiguous float32 [n] that overlaps no input; with accumulate=True the sum continues what is in it.
    Raises ArgumentError for a wrong shape, dtype, device or value, and for lists of different lengths.
    """
    check_size("n", n)
    check_weights(weights, len(indices))
    check_pairs(("indices", "values"), indices, values, (torch.int32, torch.float32), None, weights.device)
    arguments = (_contiguous(indices), _contiguous(values), weights.contiguous())
    check_accumulate(accumulate, out)
    if out is None:
        return _sparse(*arguments, n)
    _check_out(out, n, weights)
    _sparse_out(*arguments, accumulate, out)
    return out


def aggregate_codes(
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    weights: Tensor,
    *,
    n: int,
    bits: int,
    bucket: int = 512,
    out: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Return Σ weights[i]·dequantize(codes[i], scales[i]), float32 [n].

    codes: uint8 [nb·bucket·bits/8] each, in the layout of `quantize`. scales: float32 [nb] each, nb = ⌈n / bucket⌉.
    weights: float32 [C]. out: contiguous float32 [n] that overlaps no input; with accumulate=True the sum continues
    what is in it. Raises ArgumentError for a wrong shape, dtype, device or value, and for lists of different lengths.
    """
    check_coding(bits, bucket)
    check_size("n", n)
    check_weights(weights, len(codes))
    sizes = code_bytes(n, bits, bucket), bucket_count(n, bucket)
    check_pairs(("codes", "scales"), codes, scales, (torch.uint8, torch.float32), sizes, weights.device)
    arguments = (_contiguous(codes), _contiguous(scales), weights.contiguous())
    check_accumulate(accumulate, out)
    if out is None:
        return _codes(*arguments, n, bits, bucket)
    _check_out(out, n, weights)
    _codes_out(*arguments, bits, bucket, accumulate, out)
    return out


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _check_out(out: Tensor, n: int, weights: Tensor) -> None:
    check_tensor("out", out, (n,), (torch.float32,), weights.device)
    check_written("out", out)


# ---- backends: contiguous tensors of checked shapes ----


def _sparse_into(indices: list[Tensor], values: list[Tensor], weights: Tensor, accumulate: bool, out: Tensor) -> None:
    check_apart({"out": out}, {"indices": indices, "values": values, "weights": [weights]})
    chosen = backend.choose("aggregate_sparse", weights.device)
    counts = [index.shape[0] for index in indices]
    arguments = _addresses(indices), _addresses(values), counts, weights.data_ptr(), out.shape[0], accumulate
    if chosen == "cpu":
        loaded().aggregate_sparse_cpu(*arguments, out.data_ptr(), torch.get_num_threads())
    elif chosen == "cuda":
        launch("aggregate_sparse", out, *arguments, out.data_ptr())
    elif chosen == "triton":
        with torch.cuda.device_of(out):
            _triton().sparse_into(indices, values, weights, accumulate, out)
    else:
        out.copy_(reference.aggregate_sparse(indices, values, weights, _start(accumulate, out)))


def _codes_into(
    codes: list[Tensor],
    scales: list[Tensor],
    weights: Tensor,
    bits: int,
    bucket: int,
    accumulate: bool,
    out: Tensor,
) -> None:
    check_apart({"out": out}, {"codes": codes, "scales": scales, "weights": [weights]})
    chosen = backend.choose("aggregate_codes", weights.device)
    payloads = _addresses(codes), _addresses(scales), weights.data_ptr()
    arguments = *payloads, out.shape[0], bits, bucket, accumulate, out.data_ptr()
    if chosen == "cpu":
        loaded().aggregate_codes_cpu(*arguments, torch.get_num_threads())
    elif chosen == "cuda":
        launch("aggregate_codes", out, *arguments)
    elif chosen == "triton":
        with torch.cuda.device_of(out):
            _triton().codes_into(codes, scales, weights, bits, bucket, accumulate, out)
    else:
        out.copy_(reference.aggregate_codes(codes, scales, weights, _start(accumulate, out), bits, bucket))


def _triton() -> ModuleType:
    from ..kernels.triton import aggregate  # only here: the package works without Triton

    return aggregate


def _start(accumulate: bool, out: Tensor) -> Tensor:
    return out if accumulate else torch.zeros_like(out)


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


# ---- operators ----


def _empty(first: list[Tensor], second: list[Tensor], weights: Tensor, n: int, *_: int) -> Tensor:
    return weights.new_empty(n)


def _sparse_new(indices: list[Tensor], values: list[Tensor], weights: Tensor, n: int) -> Tensor:
    out = weights.new_empty(n)
    _sparse_into(indices, values, weights, False, out)
    return out


def _codes_new(codes: list[Tensor], scales: list[Tensor], weights: Tensor, n: int, bits: int, bucket: int) -> Tensor:
    out = weights.new_empty(n)
    _codes_into(codes, scales, weights, bits, bucket, False, out)
    return out


_sparse = register(
    "aggregate_sparse(Tensor[] indices, Tensor[] values, Tensor weights, SymInt n) -> Tensor", _sparse_new, _empty
)
_sparse_out = register(
    "aggregate_sparse_out(Tensor[] indices, Tensor[] values, Tensor weights, bool accumulate, Tensor(a!) out) -> ()",
    _sparse_into,
    nothing,
)
_codes = register(
    "aggregate_codes(Tensor[] codes, Tensor[] scales, Tensor weights, SymInt n, int bits, int bucket) -> Tensor",
    _codes_new,
    _empty,
)
_codes_out = register(
    "aggregate_codes_out(Tensor[] codes, Tensor[] scales, Tensor weights, int bits, int bucket, bool accumulate,"
    " Tensor(a!) out) -> ()",
    _codes_into,
    nothing,
)
