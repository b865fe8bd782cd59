"""Calls every operation at small, ragged shapes, to be run under a checker of memory accesses and races.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m benchmarks.sanitize --backend cuda

Without PyTorch's cache each tensor is an allocation of its own, so that a step over its end is seen. The calls check
nothing themselves: that is what the tests are for. Exit code 2 if the backend serves no operation here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fedsynsam import ops, use_backend
from fedsynsam.ops import backend

SHAPES = ((3, 1), (2, 33), (3, 4097), (2, 10_007))
VARIANTS = ((torch.float32, 0), (torch.float32, 1), (torch.bfloat16, 0))  # dtype, and where in its storage a row begins
DENSITY, CHUNK, BUCKET = 0.05, 1000, 64

Call = tuple[str, Callable[[], object]]  # the operation as backends know it, and a call of it


def calls(rows: int, n: int, dtype: torch.dtype, offset: int, device: torch.device) -> Iterator[Call]:
    """Yield calls of every operation on [rows, n] with ties, zeros and a NaN, at an offset into the storage."""
    generator = torch.Generator().manual_seed(n)

    def draw(kind: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(rows * n + offset, generator=generator).mul_(4).round_().to(kind).to(device)
        return values[offset:].view(rows, n)

    update, residual = draw(dtype), draw()
    if rows > 2:
        update[1, n // 2] = float("nan")
    k = ops.count_kept(n, DENSITY)
    for given in (None, residual):
        yield "topk", lambda given=given: ops.topk(update, given, k=k)
        yield "chunk_topk", lambda given=given: ops.chunk_topk(update, given, density=DENSITY, chunk=CHUNK)
        yield from _quantizing(update, given, device)
    yield from _coding(rows, n, k, device)
    yield from _aggregating(n, device)
    weights, gradient, synthetic, correction, momentum = draw(), draw(dtype), draw(dtype), draw(), draw()
    for options in ({}, {"adaptive": True}, {"synthetic": synthetic, "beta": 0.5}):
        yield "sam_norm", lambda options=options: ops.sam_norm(weights, gradient, **options)
        yield "sam_perturb", lambda options=options: ops.sam_perturb(weights, gradient, rho=0.05, **options)
    rates = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    yield "sam_step", lambda: ops.sam_step(weights, gradient, lr=0.1)
    yield (
        "sam_step",
        lambda: ops.sam_step(weights, gradient, correction=correction, momentum_buffer=momentum, **rates),
    )


def _quantizing(update: Tensor, residual: Tensor | None, device: torch.device) -> Iterator[Call]:
    rows, n = update.shape
    seeds = torch.arange(rows, dtype=torch.int64, device=device)
    for bits in (1, 2, 4, 8):
        for norm, rounding in (("max", "stochastic"), ("l2", "nearest")):
            size = {"bits": bits, "bucket": BUCKET}
            how = {**size, "norm": norm, "rounding": rounding}
            yield "quantize", lambda how=how: ops.quantize(update, seeds, residual, **how)
            on_cpu = ops.quantize(update.cpu(), seeds.cpu(), None if residual is None else residual.cpu(), **how)
            sent = ops.Quantized(*(None if part is None else part.to(device) for part in on_cpu))
            yield "dequantize", lambda sent=sent, size=size: ops.dequantize(sent.codes, sent.scales, n=n, **size)


def _coding(rows: int, n: int, k: int, device: torch.device) -> Iterator[Call]:
    on_cpu = torch.arange(k, dtype=torch.int32).mul_(max(1, n // max(1, k))).expand(rows, k).contiguous()
    indices, words = on_cpu.to(device), ops.encode_indices(on_cpu, n=n).to(device)
    yield "encode_indices", lambda: ops.encode_indices(indices, n=n)
    yield "decode_indices", lambda: ops.decode_indices(words, n=n, k=k)
    yield "decode_indices", lambda: ops.decode_indices(torch.full_like(words, -1), n=n, k=k)  # hostile


def _aggregating(n: int, device: torch.device) -> Iterator[Call]:
    payloads = 5
    weights = torch.rand(payloads, generator=torch.Generator().manual_seed(0)).to(device)
    kept = [torch.arange(min(i % 3, n), n, 7 + i, dtype=torch.int32).to(device) for i in range(payloads)]
    values = [torch.ones(index.numel(), device=device) for index in kept]
    yield "aggregate_sparse", lambda: ops.aggregate_sparse(kept, values, weights, n=n)
    buckets = -(-n // BUCKET)
    for bits in (1, 2, 4, 8):
        codes = [torch.randint(0, 256, (buckets * BUCKET * bits // 8,), dtype=torch.uint8).to(device)] * payloads
        scales = [torch.rand(buckets).to(device)] * payloads
        how = {"n": n, "bits": bits, "bucket": BUCKET}
        yield (
            "aggregate_codes",
            lambda codes=codes, scales=scales, how=how: ops.aggregate_codes(codes, scales, weights, **how),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Call what the backend serves; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="cuda", choices=backend.NAMES)
    options = parser.parse_args(arguments)
    if (reason := backend.why_not(options.backend)) is not None:
        print(f"backend {options.backend!r} cannot be used here: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cuda" if options.backend in ("cuda", "triton") else "cpu")
    done: dict[str, int] = {}
    left_out = set()
    for rows, n in SHAPES:
        for dtype, offset in VARIANTS:
            for op, call in calls(rows, n, dtype, offset, device):
                if device.type == "cuda" and options.backend not in backend.GPU_BACKENDS.get(op, ()):
                    left_out.add(op)
                    continue
                with use_backend(options.backend):
                    call()
                done[op] = done.get(op, 0) + 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(", ".join(f"{op}: {count} calls" for op, count in done.items()) or "no calls")
    if left_out:
        print(f"without a {options.backend} kernel: {', '.join(sorted(left_out))}")
    return 0 if done else 2


if __name__ == "__main__":
    sys.exit(main())
