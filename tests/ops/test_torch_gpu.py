"""What every operation owes PyTorch on a CUDA device, on each GPU backend that has it.

Compiled without a graph break; captured in a CUDA graph and replayed with other inputs and seeds; on a side stream; no
host synchronization; little memory beyond the outputs; offsets past 2³¹. What is expected comes from the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fedsynsam import ops
from fedsynsam.ops import backend

ROWS, N, K = 3, 1_000_003, 10_000
WEIGHTS = (0.25, 0.5, 0.125)


class Operation(NamedTuple):
    """A call and how to draw its inputs; it returns its outputs, a tensor or a tuple of them."""

    name: str
    inputs: Callable[[int], list[Tensor]]
    call: Callable[..., object]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeds(seed: int) -> Tensor:
    return torch.arange(ROWS) * 1_000_003 + seed


def chosen(seed: int) -> Tensor:
    return ops.topk(normal(seed, ROWS, N), k=K).indices


def coded(seed: int) -> ops.Quantized:
    return ops.quantize(normal(seed, ROWS, N), seeds(seed), bits=4)


def step(weights: Tensor, gradient: Tensor, momentum: Tensor) -> tuple[Tensor, ...]:
    stepped, buffer = weights.clone(), momentum.clone()
    ops.sam_step(stepped, gradient, lr=0.1, weight_decay=0.01, momentum=0.9, momentum_buffer=buffer)
    return stepped, buffer


OPERATIONS = [
    Operation("topk", lambda s: [normal(s, ROWS, N), normal(s + 1, ROWS, N)], lambda u, r: ops.topk(u, r, k=K)),
    Operation(
        "chunk_topk",
        lambda s: [normal(s, ROWS, N), normal(s + 1, ROWS, N)],
        lambda u, r: ops.chunk_topk(u, r, density=0.01),
    ),
    Operation("encode_indices", lambda s: [chosen(s)], lambda i: ops.encode_indices(i, n=N)),
    Operation(
        "decode_indices",
        lambda s: [ops.encode_indices(chosen(s), n=N)],
        lambda w: ops.decode_indices(w, n=N, k=K),
    ),
    Operation(
        "quantize",
        lambda s: [normal(s, ROWS, N), seeds(s), normal(s + 1, ROWS, N)],
        lambda u, seed, r: ops.quantize(u, seed, r, bits=4),
    ),
    Operation("dequantize", lambda s: list(coded(s)[:2]), lambda c, x: ops.dequantize(c, x, n=N, bits=4)),
    Operation(
        "aggregate_codes",
        lambda s: [*coded(s)[:2], torch.tensor(WEIGHTS) + s],
        lambda c, x, w: ops.aggregate_codes([*c], [*x], w, n=N, bits=4),
    ),
    Operation(
        "aggregate_sparse",
        lambda s: [chosen(s), normal(s, ROWS, K), torch.tensor(WEIGHTS) + s],
        lambda i, v, w: ops.aggregate_sparse([*i], [*v], w, n=N),
    ),
    Operation(
        "sam_perturb",
        lambda s: [normal(s, ROWS, N), normal(s + 1, ROWS, N)],
        lambda w, g: ops.sam_perturb(w, g, rho=0.05),
    ),
    Operation("sam_step", lambda s: [normal(s + i, ROWS, N) for i in range(3)], step),
]


def served() -> Iterator[pytest.ParameterSet]:
    for operation in OPERATIONS:
        for name in backend.GPU_BACKENDS[operation.name]:
            yield pytest.param((operation, name), id=f"{operation.name}-{name}")


on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(params=[pytest.param(None, marks=on_gpu)])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    return torch.device("cuda")


@pytest.fixture(params=served())
def used(request: pytest.FixtureRequest) -> Iterator[Operation]:
    operation, name = request.param
    if (reason := backend.why_not(name)) is not None:
        pytest.skip(reason)
    with backend.use_backend(name):
        yield operation


def tensors(results: object) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)  # type: ignore[call-overload]


def expected(operation: Operation, seed: int) -> list[Tensor]:
    with backend.use_backend("cpu" if backend.why_not("cpu") is None else "reference"):
        return tensors(operation.call(*operation.inputs(seed)))


def drawn(operation: Operation, seed: int, device: torch.device) -> list[Tensor]:
    with backend.use_backend("cpu" if backend.why_not("cpu") is None else "reference"):
        return [tensor.to(device) for tensor in operation.inputs(seed)]


def assert_equal(operation: Operation, actual: object, seed: int) -> None:
    for got, wanted in zip(tensors(actual), expected(operation, seed), strict=True):
        if operation.name == "sam_perturb":  # the norm's sum has another order
            torch.testing.assert_close(got.cpu(), wanted, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(got.cpu().contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))


def test_compiled_without_a_graph_break(gpu, used):
    torch.compiler.reset()  # the lambda below is one function to its cache
    inputs = drawn(used, 1, gpu)
    compiled = torch.compile(lambda *given: tuple(tensors(used.call(*given))), fullgraph=True)
    assert_equal(used, compiled(*inputs), 1)


def test_no_host_synchronization_on_a_side_stream(gpu, used):
    inputs = drawn(used, 2, gpu)
    used.call(*inputs)  # compiles Triton's kernels
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            results = used.call(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert_equal(used, results, 2)


def test_replayed_with_other_inputs_and_seeds(gpu, used):
    inputs = drawn(used, 3, gpu)
    used.call(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = used.call(*inputs)
    for seed in (4, 5):
        for held, fresh in zip(inputs, drawn(used, seed, gpu), strict=True):
            held.copy_(fresh)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(used, results, seed)


def test_little_memory_beyond_the_outputs(gpu, used):
    """At most a twentieth of a float32 matrix of the rows, whatever the inputs are."""
    inputs = drawn(used, 6, gpu)
    results = tensors(used.call(*inputs))
    taken = sum(result.untyped_storage().nbytes() for result in results)
    del results
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # what is asked for: blocks of the allocator may be a megabyte larger
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    held = used.call(*inputs)
    extra = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before - taken
    del held
    assert extra <= 0.05 * 4 * ROWS * N


@pytest.mark.slow
def test_offsets_past_two_billion(gpu):
    """Of five rows of 450 million the last is like the first, and so is what comes of it."""
    n, k = 450_000_000, 1_000_000
    update = torch.zeros(5, n, dtype=torch.bfloat16, device=gpu)
    update[0].normal_()
    update[4].copy_(update[0])
    for name in backend.GPU_BACKENDS["topk"]:
        with backend.use_backend(name):
            found = ops.topk(update, k=k)
            assert torch.equal(found.indices[0], found.indices[4])
            assert torch.equal(found.residual[0], found.residual[4])
            del found
    same_seeds = torch.full((5,), 7, device=gpu)
    for name in backend.GPU_BACKENDS["quantize"]:
        with backend.use_backend(name):
            coded_rows = ops.quantize(update, same_seeds, bits=4)
            assert torch.equal(coded_rows.codes[0], coded_rows.codes[4])
            assert torch.equal(coded_rows.scales[0], coded_rows.scales[4])
            back = ops.dequantize(coded_rows.codes, coded_rows.scales, n=n, bits=4)
            assert torch.equal(back[0], back[4])
            del coded_rows, back
