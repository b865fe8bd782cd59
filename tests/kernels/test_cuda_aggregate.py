"""The CUDA aggregation kernels, emulated on the CPU thread by thread, against the reference, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulation import Guarded, assert_bits, emulated

from fedsynsam.kernels.reference import aggregate as reference
from fedsynsam.ops import aggregate_codes, aggregate_sparse, quantize


def sparse(count: int, n: int, density: float, shift: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    indices = [torch.nonzero(torch.rand(n) < density).flatten().int() for _ in range(count)]
    indices = [Guarded(index, shift).tensor for index in indices]
    return indices, [Guarded(torch.randn(len(index)), shift).tensor for index in indices]


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 1), (3, 4095), (2, 4097), (33, 9000), (70, 300)])
def test_sparse_equals_the_reference(count, n, shift):
    torch.manual_seed(n)
    weights = torch.rand(count)
    for density, accumulate in itertools.product((0.0, 0.05, 1.0), (False, True)):
        indices, values = sparse(count, n, density, shift)
        out = Guarded(torch.randn(n), shift)
        start = out.tensor.clone() if accumulate else torch.zeros(n)
        with emulated():
            aggregate_sparse(indices, values, weights, n=n, out=out.tensor, accumulate=accumulate)
        assert_bits(out.tensor, reference.aggregate_sparse(indices, values, weights, start))
        assert out.intact()


def test_indices_outside_are_skipped():
    indices = [torch.tensor([0, 3, 4096, 5000, 9999], dtype=torch.int32), torch.tensor([-7, 2], dtype=torch.int32)]
    values = [torch.ones(5), torch.ones(2)]
    out = Guarded(torch.zeros(5001))
    with emulated():
        aggregate_sparse(indices, values, torch.tensor([1.0, 2.0]), n=5001, out=out.tensor)
    expected = torch.zeros(5001)
    expected[[0, 3, 4096, 5000]] = 1.0
    expected[2] = 2.0
    assert_bits(out.tensor, expected)
    assert out.intact()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("count", "n", "bucket"), [(1, 1, 512), (3, 1024, 512), (33, 515, 64), (2, 5000, 4096), (65, 40, 8), (0, 9, 8)]
)
def test_codes_equal_the_reference(count, n, bucket, bits):
    torch.manual_seed(n)
    payloads = [quantize(torch.randn(1, n), torch.tensor([i]), bits=bits, bucket=bucket) for i in range(count)]
    weights = torch.rand(count)
    for accumulate, shift in itertools.product((False, True), (0, 1)):
        codes = [Guarded(payload.codes[0], shift).tensor for payload in payloads]
        scales = [Guarded(payload.scales[0], shift).tensor for payload in payloads]
        out = Guarded(torch.randn(n), shift)
        start = out.tensor.clone() if accumulate else torch.zeros(n)
        options = {"n": n, "bits": bits, "bucket": bucket, "accumulate": accumulate}
        with emulated():
            aggregate_codes(codes, scales, weights, out=out.tensor, **options)
        assert_bits(out.tensor, reference.aggregate_codes(codes, scales, weights, start, bits, bucket))
        assert out.intact()
