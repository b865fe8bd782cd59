"""chunk_topk on a CUDA device, each GPU backend that has it against the reference on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedsynsam.ops import TopK, backend, chunk_count_kept, chunk_topk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (rows, n, chunk)
SIZES = [(1, 0, 64), (1, 1, 1), (3, 1009, 64), (2, 5001, 200), (5, 40_001, 4096), (64, 100_000, 4096)]
SIZES += [(2, 20_000, 8192), (1, 10_000_003, 4096)]


@pytest.fixture(params=backend.GPU_BACKENDS["chunk_topk"])
def use(request: pytest.FixtureRequest) -> Iterator[str]:
    if (reason := backend.why_not(request.param)) is not None:
        pytest.skip(reason)
    with backend.use_backend(request.param):
        yield request.param


def on_cpu(update: Tensor, residual: Tensor | None, density: float, chunk: int) -> TopK:
    name = "cpu" if backend.why_not("cpu") is None else "reference"
    with backend.use_backend(name):
        return chunk_topk(update, residual, density=density, chunk=chunk)


def dirty(rows: int, n: int, density: float, chunk: int) -> TopK:
    k = chunk_count_kept(n, density, chunk)
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


def check(update: Tensor, residual: Tensor | None, density: float, chunk: int) -> TopK:
    given = None if residual is None else residual.cuda()
    out = dirty(*update.shape, density, chunk)
    chunk_topk(update.cuda(), given, density=density, chunk=chunk, out=out)
    assert_bits(out, on_cpu(update, residual, density, chunk))
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n", "chunk"), SIZES)
def test_equals_the_reference(use, rows, n, chunk, dtype):
    torch.manual_seed(n)
    update, residual = torch.randn(rows, n).to(dtype), torch.randn(rows, n)
    for density in (0.01, 0.1, 1.0):
        first = check(update, residual, density, chunk)
        assert_bits(check(update, residual, density, chunk), first)
        check(update, None, density, chunk)


@pytest.mark.slow
def test_a_hundred_million_elements(use):
    update, residual = torch.randn(1, 100_000_001), torch.randn(1, 100_000_001)
    check(update, residual, 0.01, 4096)


def test_ties_zeros_and_denormals(use):
    torch.manual_seed(0)
    normal = torch.randn(1, 20_000)
    rows = [normal * 0, torch.full_like(normal, -0.25), (normal * 2).round(), torch.where(normal > 0, 0.0, -0.0)]
    rows += [(normal * 100).round() * 1e-45, normal.sign() * torch.exp(normal * 20)]
    for density in (0.001, 0.05, 0.5):
        check(torch.cat(rows), None, density, 4096)
        check(torch.cat(rows), torch.zeros(len(rows), 20_000), density, 1000)


def test_rows_that_are_not_finite(use):
    torch.manual_seed(0)
    update, residual = torch.randn(5, 100_000), torch.randn(5, 100_000)
    update[1, 77], update[2, 99_999], update[4, 50_000:] = math.nan, math.inf, -math.inf
    assert check(update, residual, 0.01, 4096).nonfinite.tolist() == [False, True, True, False, True]
    check(update, None, 0.01, 4096)


def test_views_at_odd_offsets(use):
    update, residual = torch.randn(3, 5002), torch.randn(3, 5002)
    check(update[:, 1:], residual[:, 1:], 0.1, 1000)
    storage = torch.randn(1, 10_001).cuda()
    view = storage[:, 1:]
    assert_bits(chunk_topk(view, density=0.1), on_cpu(view.cpu(), None, 0.1, 4096))


def test_graph_capture_on_a_side_stream_without_synchronization(use):
    update, residual = torch.randn(4, 50_003).cuda(), torch.randn(4, 50_003).cuda()
    out = dirty(4, 50_003, 0.01, 4096)
    chunk_topk(update, residual, density=0.01, out=out)  # compiles Triton's kernels, which a capture may not
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            chunk_topk(update, residual, density=0.01, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        chunk_topk(update, residual, density=0.01, out=out)
    update.copy_(torch.randn(4, 50_003))
    update[2, 3] = math.nan
    graph.replay()
    torch.cuda.synchronize()
    assert_bits(out, on_cpu(update.cpu(), residual.cpu(), 0.01, 4096))


def test_compiled_by_torch(use):
    update, residual = torch.randn(2, 9000).cuda(), torch.randn(2, 9000).cuda()
    compiled = torch.compile(lambda u, r: tuple(chunk_topk(u, r, density=0.05)), fullgraph=True)
    assert_bits(TopK(*compiled(update, residual)), on_cpu(update.cpu(), residual.cpu(), 0.05, 4096))
