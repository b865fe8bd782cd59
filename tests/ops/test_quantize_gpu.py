"""quantize, dequantize and the aggregations on a CUDA device, each GPU backend against the reference on the CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from fedsynsam.kernels.reference import aggregate as reference_sum
from fedsynsam.kernels.reference import quantize as reference
from fedsynsam.ops import Quantized, aggregate_codes, aggregate_sparse, backend, dequantize, quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["cuda", "triton"])
def use(request):
    if request.param not in backend.GPU_BACKENDS["quantize"]:
        pytest.skip(f"there is no {request.param} kernel for quantize")
    if (reason := backend.why_not(request.param)) is not None:
        pytest.skip(reason)
    with backend.use_backend(request.param):
        yield request.param


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.cpu().flatten().view(torch.uint8), expected.flatten().view(torch.uint8))


SHAPES = [(1, 1, 512), (3, 4099, 512), (64, 20_000, 64), (2, 70_001, 4096)]
# Triton compiles a kernel for each case below, a second each: not every type with every width.
THIN = [(torch.float32, bits) for bits in (1, 2, 4, 8)] + [(dtype, 4) for dtype in DTYPES[1:]]
KINDS = {"cuda": list(itertools.product(DTYPES, (1, 2, 4, 8))), "triton": THIN}


@pytest.mark.parametrize(
    ("use", "dtype", "bits"), [(name, *kind) for name, kinds in KINDS.items() for kind in kinds], indirect=["use"],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("rows", "n", "bucket"), SHAPES)
def test_codes_equal_the_reference(use, rows, n, bucket, dtype, bits):
    torch.manual_seed(n)
    update, residual, seeds = torch.randn(rows, n).to(dtype), torch.randn(rows, n), torch.arange(rows) - 1
    update[rows // 2, 0] = torch.nan if rows > 1 else 0.0
    for norm, rounding, left in itertools.product(("max", "l2"), ("stochastic", "nearest"), (None, residual)):
        expected = reference.quantize(update, seeds, left, bits, bucket, norm, rounding)
        out = Quantized(*(torch.empty_like(tensor, device="cuda").fill_(1) for tensor in expected))  # dirty
        on_device = None if left is None else left.cuda()
        options = {"bits": bits, "bucket": bucket, "norm": norm, "rounding": rounding}
        quantize(update.cuda(), seeds.cuda(), on_device, out=out, **options)
        assert all(same(got, wanted) for got, wanted in zip(out, expected, strict=True))
        x = dequantize(out.codes, out.scales, n=n, bits=bits, bucket=bucket)
        assert same(x, reference.dequantize(expected[0], expected[1], n, bits, bucket))


@pytest.mark.parametrize("count", [1, 33])
def test_sums_equal_the_reference(use, count):
    torch.manual_seed(count)
    n, weights = 100_003, torch.rand(count)
    indices = [torch.nonzero(torch.rand(n) < 0.01).flatten().int() for _ in range(count)]
    values = [torch.randn(len(index)) for index in indices]
    got = aggregate_sparse([i.cuda() for i in indices], [v.cuda() for v in values], weights.cuda(), n=n)
    assert same(got, reference_sum.aggregate_sparse(indices, values, weights, torch.zeros(n)))
    packed = [reference.quantize(torch.randn(1, n), torch.tensor([i]), None, 4, 512, "max", "stochastic")
              for i in range(count)]  # fmt: skip
    codes, scales = [item[0][0] for item in packed], [item[1][0] for item in packed]
    got = aggregate_codes([c.cuda() for c in codes], [s.cuda() for s in scales], weights.cuda(), n=n, bits=4)
    assert same(got, reference_sum.aggregate_codes(codes, scales, weights, torch.zeros(n), 4, 512))


def test_captured_in_a_graph_with_other_seeds(use):
    update, seeds = torch.randn(4, 50_000, device="cuda"), torch.arange(4, device="cuda")
    out = quantize(update, seeds, bits=4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quantize(update, seeds, bits=4, out=out)
    for shift in (10, 20):
        seeds.copy_(torch.arange(4) + shift)
        graph.replay()
        expected = reference.quantize(update.cpu(), torch.arange(4) + shift, None, 4, 512, "max", "stochastic")
        assert same(out.codes, expected[0])


def test_no_host_synchronization(use):
    update, seeds = torch.randn(2, 10_000, device="cuda"), torch.arange(2, device="cuda")
    quantize(update, seeds, bits=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = quantize(update, seeds, bits=2)
        x = dequantize(found.codes, found.scales, n=10_000, bits=2)
        aggregate_codes([*found.codes], [*found.scales], x[0, :2].abs(), n=10_000, bits=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_hundred_million(use):
    update, seeds = torch.randn(1, 512 * 195_313, device="cuda"), torch.tensor([5], device="cuda")
    found, again = quantize(update, seeds, bits=4), quantize(update, seeds, bits=4)
    assert torch.equal(found.codes, again.codes)
    expected = reference.quantize(update[:, -51_200:].cpu(), seeds.cpu(), None, 4, 512, "max", "nearest")
    nearest = quantize(update, seeds, bits=4, rounding="nearest")
    assert same(nearest.codes[:, -25_600:], expected[0])
