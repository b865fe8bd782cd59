"""Bucketed quantization to 1, 2, 4 or 8 bits, unbiased, with an optional residual: `quantize`, `dequantize`.

A row is cut into buckets of B values with one scale each. With a = float32(update) + residual:

    scale = max |a| or ‖a‖₂,  L = 2^(bits−1) − 1,  y = a·(L / scale)
    q     = ⌊y⌋ or ⌊y⌋ + 1, at random with E[q] = y (or y rounded half to even),  |q| ≤ L
    x̂     = q·(scale / L)

With one bit x̂ is +scale or −scale with E[x̂] = a (nearest: the sign). QSGD: Alistarh et al. 2017 (arXiv 1610.02132),
with the L2 norm. All backends give the same bits; kernels/reference/quantize.py pins every rounding.

The draws are the 16-bit halves of Philox4x32-10 with the row's seed as the key and the position as the counter: equal
seeds give equal codes on every machine and for every number of threads, and E[q] equals y to 2⁻¹⁶.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.reference import quantize as reference
from . import backend
from .arguments import DTYPES, check_apart, check_outputs, check_rows, check_tensor, check_written
from .extension import address, launch, loaded
from .library import nothing, register
from .quantize_arguments import (
    NORMS,
    ROUNDINGS,
    bucket_count,
    check_coding,
    check_size,
    check_word,
    code_bytes,
)

# ---- public functions ----


class Quantized(NamedTuple):
    """What `quantize` returns for rows [C, n] in nb = ⌈n / bucket⌉ buckets."""

    codes: Tensor  # uint8 [C, nb·bucket·bits/8]
    scales: Tensor  # float32 [C, nb]
    residual: Tensor  # float32 [C, n]: a − x̂; [C, 0] without a residual
    nonfinite: Tensor  # bool [C]: the row holds NaN or infinity and nothing of it is emitted


def quantize(
    update: Tensor,
    seeds: Tensor,
    residual: Tensor | None = None,
    *,
    bits: int,
    bucket: int = 512,
    norm: str = "max",
    rounding: str = "stochastic",
    out: Quantized | None = None,
) -> Quantized:
    """Quantize each row of a = update + residual; see the module for the formula.

    update: [C, n] float32, bfloat16 or float16. seeds: int64 [C], one a row (`row_seed`); unused by nearest rounding.
    residual: float32 [C, n], added before and never changed. bits: 1, 2, 4 or 8. bucket: a power of two from 8 to
    65536. norm: "max" or "l2". rounding: "stochastic" or "nearest". out: contiguous tensors as in `Quantized` that
    overlap neither an input nor each other.

    codes: with m = 8/bits, byte j of a bucket holds the codes of its values j + l·bucket/m at bit l·bits, each the low
    `bits` bits of q (the pattern of −2^(bits−1) never occurs; one bit: 0 is +scale, 1 is −scale). Codes behind the
    row's end are 0. A bucket whose scale is below 2⁻¹²⁰ has scale 0, codes 0 and x̂ = 0.

    residual: a − x̂, rounded once (one bit: saturated at the largest float32). A row with a value that is not finite
    is flagged: codes 0, scales 0, residual as it was, other rows unaffected. |a − x̂| is below one step scale/L (half
    a step for nearest, two scales for one bit) up to rounding; with one or two bits that is no contraction of a, so
    feeding the residual back can diverge.

    Raises ArgumentError for a wrong shape, dtype, device or value.
    """
    check_rows("update", update, DTYPES)
    rows, n = update.shape
    check_coding(bits, bucket)
    check_word("norm", norm, NORMS)
    check_word("rounding", rounding, ROUNDINGS)
    check_tensor("seeds", seeds, (rows,), (torch.int64,), update.device)
    if residual is not None:
        check_tensor("residual", residual, (rows, n), (torch.float32,), update.device)
        residual = residual.detach().contiguous()
    arguments = (update.detach().contiguous(), seeds.contiguous(), residual, bits, bucket, norm, rounding)
    if out is None:
        return Quantized(*_quantize(*arguments))
    check_outputs(Quantized._fields, out, _layout(*arguments), update.device)
    _quantize_out(*arguments, *out)
    return out


def dequantize(
    codes: Tensor, scales: Tensor, *, n: int, bits: int, bucket: int = 512, out: Tensor | None = None
) -> Tensor:
    """Return x̂ = q·(scale / L), float32 [C, n], of `quantize`'s codes [C, nb·bucket·bits/8] and scales [C, nb].

    out: contiguous float32 [C, n] that overlaps no input. Raises ArgumentError for a wrong shape, dtype, device or
    value; whether the scales are finite and the codes legal is for the caller to know.
    """
    check_coding(bits, bucket)
    check_size("n", n)
    check_rows("scales", scales, (torch.float32,))
    rows = scales.shape[0]
    check_tensor("scales", scales, (rows, bucket_count(n, bucket)), (torch.float32,), scales.device)
    check_tensor("codes", codes, (rows, code_bytes(n, bits, bucket)), (torch.uint8,), scales.device)
    codes, scales = codes.contiguous(), scales.contiguous()
    if out is None:
        return _dequantize(codes, scales, n, bits, bucket)
    check_tensor("out", out, (rows, n), (torch.float32,), scales.device)
    check_written("out", out)
    _dequantize_out(codes, scales, bits, bucket, out)
    return out


# ---- backends: contiguous tensors of checked shapes ----


def _quantize_into(
    update: Tensor,
    seeds: Tensor,
    residual: Tensor | None,
    bits: int,
    bucket: int,
    norm: str,
    rounding: str,
    codes: Tensor,
    scales: Tensor,
    new_residual: Tensor,
    nonfinite: Tensor,
) -> None:
    outputs = {"out.codes": codes, "out.scales": scales, "out.residual": new_residual, "out.nonfinite": nonfinite}
    check_apart(outputs, {"update": [update], "seeds": [seeds], "residual": [residual]})
    chosen = backend.choose("quantize", update.device)
    if chosen == "reference":
        results = reference.quantize(update, seeds, residual, bits, bucket, norm, rounding)
        for output, result in zip(outputs.values(), results, strict=True):
            output.copy_(result)
        return
    if chosen == "triton":
        with torch.cuda.device_of(update):
            _triton().quantize_into(
                update, seeds, residual, bits, bucket, norm, rounding, codes, scales, new_residual, nonfinite
            )
        return
    source = update.data_ptr(), DTYPES[update.dtype], address(residual), seeds.data_ptr(), *update.shape
    target = codes.data_ptr(), scales.data_ptr(), 0 if residual is None else new_residual.data_ptr()
    arguments = *source, bits, bucket, NORMS[norm], ROUNDINGS[rounding], *target, nonfinite.data_ptr()
    if chosen == "cpu":
        loaded().quantize_cpu(*arguments, torch.get_num_threads())
    else:
        launch("quantize", update, *arguments)


def _dequantize_into(codes: Tensor, scales: Tensor, bits: int, bucket: int, out: Tensor) -> None:
    check_apart({"out": out}, {"codes": [codes], "scales": [scales]})
    chosen = backend.choose("dequantize", codes.device)
    arguments = codes.data_ptr(), scales.data_ptr(), *out.shape, bits, bucket, out.data_ptr()
    if chosen == "cpu":
        loaded().dequantize_cpu(*arguments, torch.get_num_threads())
    elif chosen == "cuda":
        launch("dequantize", codes, *arguments)
    elif chosen == "triton":
        with torch.cuda.device_of(codes):
            _triton().dequantize_into(codes, scales, bits, bucket, out)
    else:
        out.copy_(reference.dequantize(codes, scales, out.shape[1], bits, bucket))


def _triton() -> ModuleType:
    from ..kernels.triton import quantize  # only here: the package works without Triton

    return quantize


# ---- operators ----


def _layout(
    update: Tensor, seeds: Tensor, residual: Tensor | None, bits: int, bucket: int, *_: str
) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shapes and dtypes of the outputs, in the order of `Quantized`."""
    rows, n = update.shape
    return (
        ((rows, code_bytes(n, bits, bucket)), torch.uint8),
        ((rows, bucket_count(n, bucket)), torch.float32),
        ((rows, 0 if residual is None else n), torch.float32),
        ((rows,), torch.bool),
    )


def _empty(update: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(update.new_empty(shape, dtype=dtype) for shape, dtype in _layout(update, *arguments))


def _quantize_new(*arguments: Any) -> tuple[Tensor, ...]:
    outputs = _empty(*arguments)
    _quantize_into(*arguments, *outputs)
    return outputs


def _dequantize_empty(codes: Tensor, scales: Tensor, n: int, bits: int, bucket: int) -> Tensor:
    return scales.new_empty((scales.shape[0], n))


def _dequantize_new(codes: Tensor, scales: Tensor, n: int, bits: int, bucket: int) -> Tensor:
    out = _dequantize_empty(codes, scales, n, bits, bucket)
    _dequantize_into(codes, scales, bits, bucket, out)
    return out


_ARGUMENTS = "Tensor update, Tensor seeds, Tensor? residual, int bits, int bucket, str norm, str rounding"
_quantize = register(f"quantize({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)", _quantize_new, _empty)
_quantize_out = register(
    f"quantize_out({_ARGUMENTS}, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!) new_residual,"
    " Tensor(d!) nonfinite) -> ()",
    _quantize_into,
    nothing,
)
_dequantize = register(
    "dequantize(Tensor codes, Tensor scales, SymInt n, int bits, int bucket) -> Tensor",
    _dequantize_new,
    _dequantize_empty,
)
_dequantize_out = register(
    "dequantize_out(Tensor codes, Tensor scales, int bits, int bucket, Tensor(a!) out) -> ()",
    _dequantize_into,
    nothing,
)
