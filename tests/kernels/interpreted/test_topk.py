"""The Triton kernels of chunk_topk, interpreted, against the reference. Outputs start as rubbish."""

from __future__ import annotations

import math

import pytest
import torch
from emulation import Guarded, assert_bits
from interpretation import interpreted
from torch import Tensor

from fedsynsam.errors import BackendError
from fedsynsam.kernels import launch
from fedsynsam.kernels.reference import topk as reference
from fedsynsam.ops import TopK, chunk_count_kept, chunk_topk, count_kept

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(update: Tensor, residual: Tensor | None, density: float, chunk: int) -> TopK:
    rows, n = update.shape
    k = chunk_count_kept(n, density, chunk)
    guarded = [
        Guarded(torch.full((rows, k), -7, dtype=torch.int32), 1),
        Guarded(torch.full((rows, k), math.nan), 1),
        Guarded(torch.full((rows, n), math.nan), 1),
        Guarded(torch.full((rows,), 3, dtype=torch.uint8)),
    ]
    *tensors, flags = [g.tensor for g in guarded]
    out = TopK(*tensors, flags.view(torch.bool))
    with interpreted():
        chunk_topk(update, residual, density=density, chunk=chunk, out=out)
    kept = count_kept(chunk, density), count_kept(n % chunk, density)
    for actual, expected in zip(out, reference.chunk_topk(update, residual, chunk, *kept), strict=True):
        assert_bits(actual, expected)
    assert all(g.intact() for g in guarded)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "chunk"), [(1, 1), (1, 64), (5, 1), (63, 64), (129, 64), (1009, 200), (4099, 4096)])
def test_equals_the_reference(n, chunk, dtype):
    torch.manual_seed(n)
    update, residual = torch.randn(2, n).to(dtype), torch.randn(2, n)
    for density in (0.01, 0.2, 1.0):
        check(update, None, density, chunk)
        check(update, residual, density, chunk)


ROWS = {
    "zero": lambda x: x * 0.0,
    "equal": lambda x: torch.full_like(x, -0.25),
    "ties": lambda x: (x * 2).round(),
    "signed zeros": lambda x: torch.where(x > 0, 0.0, -0.0),
    "denormal": lambda x: (x * 100).round() * 1e-45,
    "mostly zero": lambda x: torch.where(x > 2, x, 0.0),
    "wide": lambda x: x.sign() * torch.exp(x * 20),
    "largest": lambda x: torch.where(x > 0, 3.4028234663852886e38, -1e-45),
    "one": lambda x: torch.where(torch.arange(x.shape[1]) == 17, 1e30, x * 1e-30),
}


@pytest.mark.parametrize("kind", ROWS)
def test_kinds_of_rows(kind):
    torch.manual_seed(1)
    update = ROWS[kind](torch.randn(2, 500))
    for density in (0.005, 0.1, 0.5):
        check(update, None, density, 192)
        check(update, torch.zeros(2, 500), density, 192)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("with_residual", [False, True])
def test_flagged_rows_emit_nothing(value, with_residual):
    torch.manual_seed(2)
    update, residual = torch.randn(4, 300), torch.randn(4, 300)
    update[1, 150:250] = value
    update[3, 299] = 3e38
    residual[3, 299] = 3e38  # overflows in the sum alone
    residual[1, 7] = math.nan
    out = check(update, residual if with_residual else None, 0.1, 128)
    assert out.nonfinite.tolist() == [False, True, False, with_residual]


def test_a_row_of_nan_with_all_bits_set():
    update = torch.full((1, 100), -1, dtype=torch.int32).view(torch.float32)
    assert check(update, None, 0.03, 40).nonfinite.item()


def test_a_flagged_row_longer_than_a_program_rewrites():
    update, residual = torch.randn(2, 40_000), torch.randn(2, 40_000)
    update[0, 12_345] = math.inf
    check(update, residual, 0.05, 8192)


def test_unaligned_and_empty_rows():
    torch.manual_seed(3)
    update, residual = torch.randn(3, 334), torch.randn(1003)[1:].view(3, 334)
    check(update[:, 1:], residual[:, 1:], 0.1, 100)
    check(torch.empty(2, 0), torch.empty(2, 0), 0.1, 100)
    check(torch.empty(0, 5), None, 0.1, 100)


def test_a_chunk_too_long_is_refused():
    n = launch.MAX_CHUNK + 1
    with interpreted(), pytest.raises(BackendError, match=r"at most 8192 elements of a chunk; chunk is 8193"):
        chunk_topk(torch.zeros(1, n), density=0.1, chunk=n)
    check(torch.randn(1, 100), None, 0.1, n)  # the row bounds the chunk
