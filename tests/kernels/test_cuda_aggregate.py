"""The CUDA aggregation kernels, emulated on the CPU thread by thread, against the reference, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from coding_checks import BITS, check_codes_sum, check_indices_outside, check_sparse_sum
from emulation import emulated


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 1), (3, 4095), (2, 4097), (33, 9000), (70, 300)])
def test_sparse_equals_the_reference(count, n, shift):
    torch.manual_seed(n)
    for density, accumulate in itertools.product((0.0, 0.05, 1.0), (False, True)):
        check_sparse_sum(emulated, count, n, density, accumulate, shift)


def test_indices_outside_are_skipped():
    check_indices_outside(emulated)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("count", "n", "bucket"), [(1, 1, 512), (3, 1024, 512), (33, 515, 64), (2, 5000, 4096), (65, 40, 8), (0, 9, 8)]
)
def test_codes_equal_the_reference(count, n, bucket, bits):
    torch.manual_seed(n)
    for accumulate, shift in itertools.product((False, True), (0, 1)):
        check_codes_sum(emulated, count, n, bucket, bits, accumulate, shift)
