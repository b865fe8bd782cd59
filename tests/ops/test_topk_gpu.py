"""topk and chunk_topk on a CUDA device, each GPU backend that has them against the reference on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedsynsam.ops import TopK, backend, chunk_count_kept, chunk_topk, count_kept, topk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (rows, n, chunk); no chunk: the whole row, on both sides of a tile's end and of what a sample covers
SIZES = [(1, 0, 64), (1, 1, 1), (3, 1009, 64), (2, 5001, 200), (5, 40_001, 4096), (64, 100_000, 4096)]
SIZES += [(2, 20_000, 8192), (1, 10_000_003, 4096)]
SIZES += [(1, 1, None), (7, 1000, None), (3, 4097, None), (64, 100_000, None), (2, 3_000_001, None)]


@pytest.fixture(params=sorted({*backend.GPU_BACKENDS["topk"], *backend.GPU_BACKENDS["chunk_topk"]}))
def use(request: pytest.FixtureRequest) -> Iterator[str]:
    if (reason := backend.why_not(request.param)) is not None:
        pytest.skip(reason)
    with backend.use_backend(request.param):
        yield request.param


def call(update: Tensor, residual: Tensor | None, density: float, chunk: int | None, out: TopK | None = None) -> TopK:
    if chunk is None:
        return topk(update, residual, k=count_kept(update.shape[1], density), out=out)
    return chunk_topk(update, residual, density=density, chunk=chunk, out=out)


def on_cpu(update: Tensor, residual: Tensor | None, density: float, chunk: int | None) -> TopK:
    with backend.use_backend("cpu" if backend.why_not("cpu") is None else "reference"):
        return call(update, residual, density, chunk)


def dirty(rows: int, n: int, density: float, chunk: int | None) -> TopK:
    k = count_kept(n, density) if chunk is None else chunk_count_kept(n, density, chunk)
    return TopK(
        torch.full((rows, k), -7, dtype=torch.int32, device="cuda"),
        torch.full((rows, k), math.nan, device="cuda"),
        torch.full((rows, n), math.nan, device="cuda"),
        torch.full((rows,), 3, dtype=torch.uint8, device="cuda").view(torch.bool),
    )


def assert_bits(actual: TopK, expected: TopK) -> None:
    for name, x, y in zip(TopK._fields, actual, expected, strict=True):
        x, y = (t.cpu().view(torch.int32) if t.dtype == torch.float32 else t.cpu() for t in (x, y))
        assert torch.equal(x, y), name


def check(update: Tensor, residual: Tensor | None, density: float, chunk: int | None) -> TopK:
    given = None if residual is None else residual.cuda()
    out = dirty(*update.shape, density, chunk)
    call(update.cuda(), given, density, chunk, out)
    assert_bits(out, on_cpu(update, residual, density, chunk))
    return out


def skip_without(use: str, chunk: int | None) -> None:
    if use not in backend.GPU_BACKENDS["topk" if chunk is None else "chunk_topk"]:
        pytest.skip(f"there is no {use} kernel for topk of whole rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n", "chunk"), SIZES)
def test_equals_the_reference(use, rows, n, chunk, dtype):
    skip_without(use, chunk)
    torch.manual_seed(n)
    update, residual = torch.randn(rows, n).to(dtype), torch.randn(rows, n)
    for density in (0.01, 0.1, 1.0):
        first = check(update, residual, density, chunk)
        assert_bits(check(update, residual, density, chunk), first)
        check(update, None, density, chunk)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [4096, None])
def test_a_hundred_million_elements(use, chunk):
    skip_without(use, chunk)
    update, residual = torch.randn(1, 100_000_001), torch.randn(1, 100_000_001)
    check(update, residual, 0.01, chunk)


@pytest.mark.parametrize("chunk", [4096, 1000, None])
def test_ties_zeros_and_denormals(use, chunk):
    skip_without(use, chunk)
    torch.manual_seed(0)
    normal = torch.randn(1, 20_000)
    rows = [normal * 0, torch.full_like(normal, -0.25), (normal * 2).round(), torch.where(normal > 0, 0.0, -0.0)]
    rows += [(normal * 100).round() * 1e-45, normal.sign() * torch.exp(normal * 20)]
    for density in (0.001, 0.05, 0.5):
        check(torch.cat(rows), None, density, chunk)
        check(torch.cat(rows), torch.zeros(len(rows), 20_000), density, chunk)


@pytest.mark.parametrize("chunk", [4096, None])
def test_rows_that_are_not_finite(use, chunk):
    skip_without(use, chunk)
    torch.manual_seed(0)
    update, residual = torch.randn(5, 100_000), torch.randn(5, 100_000)
    update[1, 77], update[2, 99_999], update[4, 50_000:] = math.nan, math.inf, -math.inf
    assert check(update, residual, 0.01, chunk).nonfinite.tolist() == [False, True, True, False, True]
    check(update, None, 0.01, chunk)


@pytest.mark.parametrize("chunk", [1000, None])
def test_views_at_odd_offsets(use, chunk):
    skip_without(use, chunk)
    update, residual = torch.randn(3, 5002), torch.randn(3, 5002)
    check(update[:, 1:], residual[:, 1:], 0.1, chunk)
    storage = torch.randn(1, 10_001).cuda()
    view = storage[:, 1:]
    assert_bits(call(view, None, 0.1, chunk), on_cpu(view.cpu(), None, 0.1, chunk))
