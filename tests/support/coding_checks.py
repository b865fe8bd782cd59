"""quantize, dequantize and the sums of a kernel backend against the reference, bit for bit, with guarded outputs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import torch
from emulation import Guarded, assert_bits
from torch import Tensor

from fedsynsam.kernels.reference import aggregate as sums
from fedsynsam.kernels.reference import quantize as reference
from fedsynsam.ops import Quantized, aggregate_codes, aggregate_sparse, dequantize, quantize

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BITS = [1, 2, 4, 8]
NORMS = ["max", "l2"]
ROUNDINGS = ["stochastic", "nearest"]

Run = Callable[[], contextlib.AbstractContextManager]  # the kernels under test, in place of those for CPU tensors


def outputs(rows: int, n: int, bits: int, bucket: int, residual: bool, shift: int = 0) -> dict[str, Guarded]:
    """Guarded outputs full of rubbish, `shift` elements past a 16-byte boundary."""
    buckets = -(-n // bucket)
    return {
        "codes": Guarded(torch.full((rows, buckets * bucket * bits // 8), 0xA5, dtype=torch.uint8), shift),
        "scales": Guarded(torch.full((rows, buckets), torch.nan), shift),
        "residual": Guarded(torch.full((rows, n if residual else 0), torch.nan), shift),
        "nonfinite": Guarded(torch.ones(rows, dtype=torch.uint8)),
    }


def check(run: Run, update, residual, bits, bucket, norm="max", rounding="stochastic", shift=0) -> None:
    rows, n = update.shape
    seeds = torch.tensor([(-1) ** row * (row + 1) * 0x1234567890AB for row in range(rows)])
    out = outputs(rows, n, bits, bucket, residual is not None, shift)
    target = Quantized(*(guarded.tensor for guarded in out.values()))
    target = target._replace(nonfinite=target.nonfinite.view(torch.bool))
    with run():
        quantize(update, seeds, residual, bits=bits, bucket=bucket, norm=norm, rounding=rounding, out=target)
    expected = reference.quantize(update, seeds, residual, bits, bucket, norm, rounding)
    for got, wanted in zip(target, expected, strict=True):
        assert_bits(got, wanted)
    x = Guarded(torch.full((rows, n), torch.nan), shift)
    with run():
        dequantize(target.codes, target.scales, n=n, bits=bits, bucket=bucket, out=x.tensor)
    assert_bits(x.tensor, reference.dequantize(expected[0], expected[1], n, bits, bucket))
    assert all(guarded.intact() for guarded in (*out.values(), x))


def draw(rows: int, n: int, dtype: torch.dtype = torch.float32, shift: int = 0) -> Tensor:
    return Guarded(torch.randn(rows, n).to(dtype), shift).tensor


def check_special_rows(run: Run, bits: int, bucket: int) -> None:
    """Zeros of both signs, equal values, denormals, NaN, infinity, the largest numbers, and a sum that overflows."""
    torch.manual_seed(0)
    n = bucket + 4
    rows = torch.randn(9, n)
    rows[0] = 0.0
    rows[1] = -0.0
    rows[2] = 3.0
    rows[3] = 1e-42
    rows[4, n // 2] = torch.nan
    rows[5, 0] = torch.inf
    rows[6] = torch.finfo(torch.float32).max
    rows[6, ::2] *= -1
    rows[7, : n // 2] = 1e-38
    for norm, rounding in itertools.product(NORMS, ROUNDINGS):
        check(run, rows, None, bits, bucket, norm, rounding)
        check(run, rows, torch.randn(9, n), bits, bucket, norm, rounding)
    check(run, torch.full((2, n), 3e38), torch.full((2, n), 3e38), bits, bucket)


def check_nothing_to_do(run: Run) -> None:
    """No rows, and rows of no values."""
    for rows, n in ((0, 5), (2, 0)):
        seeds = torch.zeros(rows, dtype=torch.int64)
        with run():
            found = quantize(torch.randn(rows, n), seeds, torch.randn(rows, n), bits=4)
            assert dequantize(found.codes, found.scales, n=n, bits=4).shape == (rows, n)
        assert not found.nonfinite.any()


def check_sparse_sum(run: Run, count: int, n: int, density: float, accumulate: bool, shift: int) -> None:
    """`count` random payloads."""
    weights = torch.rand(count)
    indices = [torch.nonzero(torch.rand(n) < density).flatten().int() for _ in range(count)]
    indices = [Guarded(index, shift).tensor for index in indices]
    values = [Guarded(torch.randn(len(index)), shift).tensor for index in indices]
    out = Guarded(torch.randn(n), shift)
    start = out.tensor.clone() if accumulate else torch.zeros(n)
    with run():
        aggregate_sparse(indices, values, weights, n=n, out=out.tensor, accumulate=accumulate)
    assert_bits(out.tensor, sums.aggregate_sparse(indices, values, weights, start))
    assert out.intact()


def check_indices_outside(run: Run) -> None:
    """They are skipped."""
    indices = [torch.tensor([0, 3, 4096, 5000, 9999], dtype=torch.int32), torch.tensor([-7, 2], dtype=torch.int32)]
    values = [torch.ones(5), torch.ones(2)]
    out = Guarded(torch.zeros(5001))
    with run():
        aggregate_sparse(indices, values, torch.tensor([1.0, 2.0]), n=5001, out=out.tensor)
    expected = torch.zeros(5001)
    expected[[0, 3, 4096, 5000]] = 1.0
    expected[2] = 2.0
    assert_bits(out.tensor, expected)
    assert out.intact()


def check_codes_sum(run: Run, count: int, n: int, bucket: int, bits: int, accumulate: bool, shift: int) -> None:
    """`count` random payloads."""
    payloads = [quantize(torch.randn(1, n), torch.tensor([i]), bits=bits, bucket=bucket) for i in range(count)]
    weights = torch.rand(count)
    codes = [Guarded(payload.codes[0], shift).tensor for payload in payloads]
    scales = [Guarded(payload.scales[0], shift).tensor for payload in payloads]
    out = Guarded(torch.randn(n), shift)
    start = out.tensor.clone() if accumulate else torch.zeros(n)
    options = {"n": n, "bits": bits, "bucket": bucket, "accumulate": accumulate}
    with run():
        aggregate_codes(codes, scales, weights, out=out.tensor, **options)
    assert_bits(out.tensor, sums.aggregate_codes(codes, scales, weights, start, bits, bucket))
    assert out.intact()
