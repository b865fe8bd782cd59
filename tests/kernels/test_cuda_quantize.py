"""The CUDA quantize and dequantize kernels, emulated on the CPU thread by thread, against the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulation import Guarded, assert_bits, emulated

from fedsynsam.kernels.reference import quantize as reference
from fedsynsam.ops import Quantized, dequantize, quantize

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BITS = [1, 2, 4, 8]
NORMS = ["max", "l2"]
ROUNDINGS = ["stochastic", "nearest"]


def outputs(rows: int, n: int, bits: int, bucket: int, residual: bool, shift: int = 0) -> dict[str, Guarded]:
    """Guarded outputs full of rubbish, `shift` elements past a 16-byte boundary."""
    buckets = -(-n // bucket)
    return {
        "codes": Guarded(torch.full((rows, buckets * bucket * bits // 8), 0xA5, dtype=torch.uint8), shift),
        "scales": Guarded(torch.full((rows, buckets), torch.nan), shift),
        "residual": Guarded(torch.full((rows, n if residual else 0), torch.nan), shift),
        "nonfinite": Guarded(torch.ones(rows, dtype=torch.uint8)),
    }


def check(update, residual, bits, bucket, norm="max", rounding="stochastic", shift=0) -> None:
    rows, n = update.shape
    seeds = torch.tensor([(-1) ** row * (row + 1) * 0x1234567890AB for row in range(rows)])
    out = outputs(rows, n, bits, bucket, residual is not None, shift)
    target = Quantized(*(guarded.tensor for guarded in out.values()))
    target = target._replace(nonfinite=target.nonfinite.view(torch.bool))
    with emulated():
        quantize(update, seeds, residual, bits=bits, bucket=bucket, norm=norm, rounding=rounding, out=target)
    expected = reference.quantize(update, seeds, residual, bits, bucket, norm, rounding)
    for got, wanted in zip(target, expected, strict=True):
        assert_bits(got, wanted)
    x = Guarded(torch.full((rows, n), torch.nan), shift)
    with emulated():
        dequantize(target.codes, target.scales, n=n, bits=bits, bucket=bucket, out=x.tensor)
    assert_bits(x.tensor, reference.dequantize(expected[0], expected[1], n, bits, bucket))
    assert all(guarded.intact() for guarded in (*out.values(), x))


def draw(rows: int, n: int, dtype: torch.dtype = torch.float32, shift: int = 0) -> torch.Tensor:
    return Guarded(torch.randn(rows, n).to(dtype), shift).tensor


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(dtype, bits):
    """Every way to quantize, at sizes on both sides of a bucket's end, aligned and not."""
    torch.manual_seed(bits)
    for norm, rounding, residual in itertools.product(NORMS, ROUNDINGS, (False, True)):
        for (rows, n), shift in itertools.product([(1, 1), (2, 1024), (3, 1537)], (0, 1)):
            left = draw(rows, n, shift=shift) if residual else None
            check(draw(rows, n, dtype, shift), left, bits, 512, norm, rounding, shift)


@pytest.mark.parametrize("bucket", [8, 16, 32, 64, 128, 256, 1024, 2048, 16384])
def test_every_size_of_bucket(bucket):
    torch.manual_seed(bucket)
    for bits, norm, n in itertools.product((1, 4), NORMS, (bucket - 1, 2 * bucket, 2 * bucket + 12)):
        check(draw(2, n), draw(2, n), bits, bucket, norm)


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [32768, 65536])
def test_trees_that_do_not_fit_a_block(bucket):
    torch.manual_seed(bucket)
    for norm in NORMS:
        check(draw(1, bucket + 5), draw(1, bucket + 5), 4, bucket, norm)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bucket", [16, 512, 4096])
def test_special_rows(bits, bucket):
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
        check(rows, None, bits, bucket, norm, rounding)
        check(rows, torch.randn(9, n), bits, bucket, norm, rounding)
    overflowing = torch.full((2, n), 3e38)
    check(torch.full((2, n), 3e38), overflowing, bits, bucket)


def test_empty():
    for rows, n in ((0, 5), (2, 0)):
        seeds = torch.zeros(rows, dtype=torch.int64)
        with emulated():
            found = quantize(torch.randn(rows, n), seeds, torch.randn(rows, n), bits=4)
            assert dequantize(found.codes, found.scales, n=n, bits=4).shape == (rows, n)
        assert not found.nonfinite.any()


def test_the_same_codes_for_another_thread_order():
    torch.manual_seed(0)
    update, seeds = torch.randn(2, 3000), torch.tensor([1, 2])
    with emulated() as library:
        first = quantize(update, seeds, bits=4, norm="l2")
        library.set_seed(12345)
        second = quantize(update, seeds, bits=4, norm="l2")
    for a, b in zip(first, second, strict=True):
        assert_bits(a, b)
