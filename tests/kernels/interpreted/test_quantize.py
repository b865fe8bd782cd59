"""The Triton kernels of quantize and dequantize, interpreted, against the reference. Outputs start as rubbish."""

from __future__ import annotations

import itertools
from functools import partial

import coding_checks
import pytest
import torch
from coding_checks import BITS, DTYPES, NORMS, ROUNDINGS, draw
from interpretation import interpreted

from fedsynsam.errors import BackendError
from fedsynsam.kernels import launch
from fedsynsam.ops import quantize

check = partial(coding_checks.check, interpreted)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(dtype, bits):
    """Every way to quantize, at sizes on both sides of a bucket's and of a program's end."""
    torch.manual_seed(bits)
    for norm, rounding, residual in itertools.product(NORMS, ROUNDINGS, (False, True)):
        for rows, n in ((1, 1), (2, 1537), (2, 4096), (1, 4100)):
            check(draw(rows, n, dtype), draw(rows, n) if residual else None, bits, 512, norm, rounding)


@pytest.mark.parametrize("bucket", [8, 64, 1024, launch.MAX_BUCKET])
def test_sizes_of_bucket(bucket):
    torch.manual_seed(bucket)
    for bits, norm, n in itertools.product((1, 4), NORMS, (bucket - 1, 2 * bucket + 12)):
        check(draw(2, n), draw(2, n), bits, bucket, norm, shift=1)


@pytest.mark.parametrize("bits", BITS)
def test_special_rows(bits):
    coding_checks.check_special_rows(interpreted, bits, 512)


def test_empty():
    coding_checks.check_nothing_to_do(interpreted)


def test_buckets_that_do_not_fit_are_refused():
    with interpreted(), pytest.raises(BackendError, match=f"at most {launch.MAX_BUCKET} values of a bucket"):
        quantize(torch.zeros(1, 9), torch.zeros(1, dtype=torch.int64), bits=4, bucket=2 * launch.MAX_BUCKET)
