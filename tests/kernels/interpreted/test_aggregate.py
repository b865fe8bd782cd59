"""The Triton kernels of aggregate_sparse and aggregate_codes, interpreted, against the reference."""

from __future__ import annotations

import pytest
import torch
from coding_checks import BITS, check_codes_sum, check_indices_outside, check_sparse_sum
from interpretation import interpreted


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 1), (3, 8191), (5, 17_000), (33, 900)])
def test_sparse_equals_the_reference(count, n, accumulate):
    torch.manual_seed(n)
    for density in (0.0, 0.05, 1.0):
        check_sparse_sum(interpreted, count, n, density, accumulate, shift=1)


def test_indices_outside_are_skipped():
    check_indices_outside(interpreted)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("count", "n", "bucket"), [(1, 1, 512), (3, 5000, 512), (33, 515, 64), (0, 9, 8)])
def test_codes_equal_the_reference(count, n, bucket, bits):
    torch.manual_seed(n)
    for accumulate in (False, True):
        check_codes_sum(interpreted, count, n, bucket, bits, accumulate, shift=1)
