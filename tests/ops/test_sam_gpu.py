"""sam_norm, sam_perturb and sam_step on a CUDA device, each GPU backend against the reference on the CPU.

Elementwise results are equal bit for bit given the same norm; norms agree to one float32 unit in the last place.
"""

from __future__ import annotations

import math

import pytest
import torch

from fedsynsam.ops import backend, sam_norm, sam_perturb, sam_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 0), (1, 1), (3, 4095), (2, 4097), (64, 40_001), (1, 4096 * 1024 + 3)]
ULP = 2.0**-23


@pytest.fixture(params=["cuda", "triton"])
def use(request):
    if (reason := backend.why_not(request.param)) is not None:
        pytest.skip(reason)
    return request.param


def draw(rows: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, n).to(dtype)


def assert_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(actual.cpu().view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SHAPES)
def test_perturbation_equals_the_reference(use, rows, n, dtype):
    torch.manual_seed(0)
    w, g, s = draw(rows, n), draw(rows, n, dtype), draw(rows, n, dtype)
    for options in ({}, {"adaptive": True}, {"synthetic": s, "beta": 0.3}):
        device = {**options, "synthetic": s.cuda()} if "synthetic" in options else options
        out = torch.full((rows, n), math.nan, device="cuda")
        with backend.use_backend(use):
            norm = sam_norm(w.cuda(), g.cuda(), **device)
            again = sam_norm(w.cuda(), g.cuda(), **device)
            sam_perturb(w.cuda(), g.cuda(), rho=0.05, out=out, **device)
        assert_bits(again, norm.cpu())
        with backend.use_backend("reference"):
            torch.testing.assert_close(norm.cpu(), sam_norm(w, g, **options), rtol=ULP, atol=0)
            assert_bits(out, sam_perturb(w, g, rho=0.05, norm=norm.cpu(), **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SHAPES)
def test_step_equals_the_reference(use, rows, n, dtype):
    torch.manual_seed(0)
    w, g, correction, buffer = draw(rows, n), draw(rows, n, dtype), draw(rows, n), draw(rows, n)
    weights, momentum_buffer = w.cuda(), buffer.cuda()
    options = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}
    with backend.use_backend(use):
        sam_step(weights, g.cuda(), correction=correction.cuda(), momentum_buffer=momentum_buffer, **options)
    with backend.use_backend("reference"):
        sam_step(w, g, correction=correction, momentum_buffer=buffer, **options)
    assert_bits(weights, w)
    assert_bits(momentum_buffer, buffer)


def test_graph_capture_on_a_side_stream(use):
    w, g = draw(4, 5003).cuda(), draw(4, 5003).cuda()
    out = torch.empty_like(w)
    with backend.use_backend(use):
        sam_perturb(w, g, rho=0.05, out=out)  # compiles Triton's kernels, which a capture may not
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sam_perturb(w, g, rho=0.05, out=out)
        g.copy_(draw(4, 5003))
        graph.replay()
        torch.cuda.synchronize()
        assert_bits(out, sam_perturb(w, g, rho=0.05).cpu())
