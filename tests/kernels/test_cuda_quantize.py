"""The CUDA quantize and dequantize kernels, emulated on the CPU thread by thread, against the reference."""

from __future__ import annotations

import itertools
from functools import partial

import coding_checks
import pytest
import torch
from coding_checks import BITS, DTYPES, NORMS, ROUNDINGS, draw
from emulation import assert_bits, emulated

from fedsynsam.ops import quantize

check = partial(coding_checks.check, emulated)


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
    coding_checks.check_special_rows(emulated, bits, bucket)


def test_empty():
    coding_checks.check_nothing_to_do(emulated)


def test_the_same_codes_for_another_thread_order():
    torch.manual_seed(0)
    update, seeds = torch.randn(2, 3000), torch.tensor([1, 2])
    with emulated() as library:
        first = quantize(update, seeds, bits=4, norm="l2")
        library.set_seed(12345)
        second = quantize(update, seeds, bits=4, norm="l2")
    for a, b in zip(first, second, strict=True):
        assert_bits(a, b)
