"""The CUDA kernels of topk and chunk_topk, emulated on the CPU thread by thread, against the reference.

What lies before and after the outputs must stay; outputs start as rubbish, and so does the scratch.
"""

from __future__ import annotations

import math

import pytest
import torch
from emulation import Guarded, assert_bits, emulated, library
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsynsam.kernels.reference import topk as reference
from fedsynsam.ops import TopK, chunk_count_kept, chunk_topk, count_kept, topk

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TILE = 4096


def dirty(rows: int, n: int, k: int, shift: int) -> list[Guarded]:
    return [
        Guarded(torch.full((rows, k), -7, dtype=torch.int32), shift),
        Guarded(torch.full((rows, k), math.nan), shift),
        Guarded(torch.full((rows, n), math.nan), shift),
        Guarded(torch.full((rows,), 1, dtype=torch.uint8)),
    ]


def compare(outputs: list[Guarded], expected: tuple[Tensor, ...]) -> TopK:
    out = as_result(outputs)
    for name, actual, right in zip(TopK._fields, out, expected, strict=True):
        try:
            assert_bits(actual, right)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    assert all(output.intact() for output in outputs)
    return out


def as_result(outputs: list[Guarded]) -> TopK:
    indices, values, residual, nonfinite = (output.tensor for output in outputs)
    return TopK(indices, values, residual, nonfinite.view(torch.bool))


def check(update: Tensor, residual: Tensor | None, k: int, shift: int = 0) -> TopK:
    rows, n = update.shape
    outputs = dirty(rows, n, k, shift)
    given_residual = None if residual is None else Guarded(residual, shift).tensor
    with emulated():
        topk(Guarded(update, shift).tensor, given_residual, k=k, out=as_result(outputs))
    return compare(outputs, reference.topk(update, residual, k))


def check_chunks(update: Tensor, residual: Tensor | None, density: float, chunk: int, shift: int = 0) -> TopK:
    rows, n = update.shape
    outputs = dirty(rows, n, chunk_count_kept(n, density, chunk), shift)
    given_residual = None if residual is None else Guarded(residual, shift).tensor
    with emulated():
        chunk_topk(Guarded(update, shift).tensor, given_residual, density=density, chunk=chunk, out=as_result(outputs))
    kept = count_kept(chunk, density), count_kept(n % chunk, density)
    return compare(outputs, reference.chunk_topk(update, residual, chunk, *kept))


def draw(rows: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + rows)
    return torch.randn(rows, n, generator=generator).to(dtype), torch.randn(rows, n, generator=generator)


# Rows within one tile, at its border, of a few tiles, and long enough for the sample to leave most of them out.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 2), (2, 1009), (2, TILE), (2, TILE + 1), (3, 10_002), (1, 40_000)])
def test_equals_the_reference(rows, n, dtype):
    update, residual = draw(rows, n, dtype)
    for k in sorted({0, 1, n // 100, n // 10, n // 2, n - 1, n}):
        check(update, residual, k)
    check(update, None, max(1, n // 50))
    check(update, residual, max(1, n // 50), shift=1)


@pytest.mark.parametrize("k", [1, 1500, 15_000, 75_000])
def test_a_row_of_which_a_part_is_sampled(k):
    update, residual = draw(1, 150_001, torch.float32)
    check(update, residual, k)


def test_many_tiles_a_block():
    """A row has at most 1024 groups of tiles: 4.2 million elements give one tile each, more give several."""
    words = library().topk_cuda_scratch
    assert words(5, TILE, TILE) == 0
    for n in (TILE + 1, 10**6, 10**8, 2**31 - 1):
        share = words(1, n, n) * 4 / (4 * n)
        assert share <= 0.05 or n < 250_000, f"scratch is {share:.1%} of a float32 row of {n}"


@pytest.mark.slow
@pytest.mark.parametrize("k", [50_000, 500_000])
def test_groups_of_several_tiles_equal_the_reference(k):
    update, residual = draw(1, 5_000_000, torch.float32)
    with emulated():
        actual = topk(update, residual, k=k)
    for result, expected in zip(actual, reference.topk(update, residual, k), strict=True):
        assert_bits(result, expected)


CLUSTERED = {
    "large at the end": lambda n: torch.cat([torch.randn(n - n // 20) * 1e-3, torch.randn(n // 20)]),
    "large at one place": lambda n: torch.cat([torch.randn(n // 3), torch.randn(3) * 1e6, torch.randn(n - n // 3 - 3)]),
    "every eighth element": lambda n: torch.where(torch.arange(n) % 8 == 3, torch.randn(n) * 100, torch.randn(n)),
    "hidden from the sample": lambda n: torch.where(torch.arange(n) % 64 < 8, torch.zeros(n), torch.randn(n)),
    "heavy tails": lambda n: torch.randn(n) / torch.randn(n).abs().clamp(min=1e-6),
    "all equal": lambda n: torch.full((n,), -2.5),
    "all zero": lambda n: torch.zeros(n) * (torch.arange(n) % 2 * 2.0 - 1.0),
    "two values": lambda n: torch.where(torch.arange(n) % 37 == 0, 2.0, 1.0) * (torch.arange(n) % 2 * 2.0 - 1.0),
    "mostly zero": lambda n: torch.where(torch.rand(n) < 0.004, torch.randn(n), torch.zeros(n)),
    "denormals": lambda n: torch.randn(n) * 1e-41,
    "integers": lambda n: torch.randint(-5, 6, (n,)).float(),
    "descending": lambda n: torch.arange(n, 0, -1).float(),
}


@pytest.mark.parametrize("kind", CLUSTERED)
@pytest.mark.parametrize("n", [3000, 30_001, 100_000])
def test_shapes_of_data(kind, n):
    """Ties across tiles, clusters and estimates that fail: the outputs do not depend on how they came about."""
    torch.manual_seed(n)
    update = torch.stack([CLUSTERED[kind](n), torch.randn(n)])
    for k in (n // 200, n // 30, n // 4):
        check(update, None, k)


def test_nonfinite_rows_are_flagged_and_the_others_are_right():
    update, residual = draw(64, 9000, torch.float32)
    update[3, 8999], update[17, 0], residual[40, 5000] = math.nan, math.inf, -math.inf
    update[50, 7], residual[50, 7] = 3e38, 3e38  # the sum overflows
    out = check(update, residual, 90)
    assert out.nonfinite.nonzero().flatten().tolist() == [3, 17, 40, 50]
    check(update[:, :4000], residual[:, :4000], 40)
    check(update.masked_fill(torch.arange(9000) == 11, math.nan), None, 9000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "chunk"), [(1, 1), (1009, 64), (5001, 200), (12_289, TILE), (20_003, 5000), (9001, 9000)]
)
def test_chunks_equal_the_reference(n, chunk, dtype):
    update, residual = draw(2, n, dtype)
    for density in (0.01, 0.3, 1.0):
        check_chunks(update, residual, density, chunk)
    check_chunks(update, None, 0.05, chunk, shift=1)


def test_chunks_of_ties_zeros_and_nonfinite_rows():
    torch.manual_seed(0)
    update = torch.randint(-2, 3, (4, 9000)).float()
    update[1] = 0
    update[2, 8000] = math.nan
    for chunk in (256, TILE, 5000):
        assert check_chunks(update, torch.zeros(4, 9000), 0.1, chunk).nonfinite.tolist() == [False, False, True, False]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_rows(data):
    n = data.draw(st.integers(1, 9000))
    k = data.draw(st.integers(0, n))
    levels = data.draw(st.sampled_from([2, 50, 10**6]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    update = torch.randint(-levels, levels, (1, n), generator=generator).float()
    check(update, torch.zeros(1, n) if data.draw(st.booleans()) else None, k, shift=data.draw(st.integers(0, 3)))


def test_nothing_to_do():
    with emulated():
        assert topk(torch.zeros(0, 5), k=2).indices.shape == (0, 2)
        assert topk(torch.zeros(3, 0), k=0).nonfinite.tolist() == [False] * 3
        assert chunk_topk(torch.zeros(3, 0), density=0.5).values.shape == (3, 0)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "large at the end", "every eighth element"])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5])
def test_the_estimate_holds(kind, density):
    """The passes for failed estimates stay unused on data as they come: read from what the kernels leave behind."""
    torch.manual_seed(7)
    n = 200_000
    update = CLUSTERED.get(kind, torch.randn)(n).view(1, n)
    k = count_kept(n, density)
    outputs = TopK(*(tensor.tensor for tensor in dirty(1, n, k, 0)))
    scratch = torch.empty(library().topk_cuda_scratch(1, n, n), dtype=torch.int32)
    addresses = (output.data_ptr() for output in outputs)
    assert library().topk_cuda(update.data_ptr(), 0, 0, 1, n, k, *addresses, scratch.data_ptr(), 0) == 0
    hi, used, sure, overflow = scratch[1:5].tolist()
    assert not overflow
    assert sure < k <= sure + used
    assert (hi == -(2**31)) == (density <= 1 / 64), "a sparse piece has no upper bound: all that can win is listed"
    assert used <= (1.5 * k if density <= 1 / 64 else 0.025 * n) + 1024


def test_a_grid_too_large_is_refused():
    rows, n = 1 << 31, 10
    assert library().topk_cuda(0, 0, 0, rows, n, 1, 0, 0, 0, torch.zeros(1).data_ptr(), 0, 0) == -1
