"""topk and chunk_topk: the reference against a numpy oracle, and the C++ against the reference, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsynsam import ops
from fedsynsam.ops import TopK, backend

needs_extension = pytest.mark.skipif(backend.extension is None, reason="the C++ extension is not built")
INSTRUCTION_SETS = backend.extension.topk_instruction_sets() if backend.extension is not None else []
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def each_instruction_set() -> Iterator[str]:
    """Let the C++ use one instruction set after the other; the best one again afterwards."""
    select = backend.extension.topk_select_instruction_set
    try:
        for name in INSTRUCTION_SETS:
            assert select(name)
            yield name
    finally:
        select(INSTRUCTION_SETS[0])


def reference_topk(update: Tensor, residual: Tensor | None, k: int) -> TopK:
    with backend.use_backend("reference"):
        return ops.topk(update, residual, k=k)


def reference_chunk_topk(update: Tensor, residual: Tensor | None, density: float, chunk: int) -> TopK:
    with backend.use_backend("reference"):
        return ops.chunk_topk(update, residual, density=density, chunk=chunk)


def assert_same_bits(got: TopK, expected: TopK) -> None:
    for name, x, y in zip(TopK._fields, got, expected, strict=True):
        assert x.dtype == y.dtype, name
        assert x.shape == y.shape, name
        x, y = (t.view(torch.int32) if t.dtype == torch.float32 else t for t in (x, y))
        assert torch.equal(x, y), f"{name}: {(x != y).sum()} differ, first at {(x != y).nonzero()[:1].tolist()}"


def oracle_indices(a: np.ndarray, k: int) -> np.ndarray:
    """The k largest magnitudes of one row, in float64, by a stable sort: ties to the lowest index."""
    return np.sort(np.argsort(-np.abs(a.astype(np.float64)), kind="stable")[:k])


def assert_oracle(result: TopK, update: Tensor, residual: Tensor | None, pieces: list[tuple[int, int, int]]) -> None:
    """Check each row against numpy; `pieces` are (begin, end, k)."""
    for row in range(update.shape[0]):
        a = update[row].float().numpy()
        a = a if residual is None else a + residual[row].numpy()
        parts = [begin + oracle_indices(a[begin:end], k) for begin, end, k in pieces]
        indices = np.concatenate([np.zeros(0, np.int64), *parts])
        left = a.copy()
        left[indices] = 0.0
        assert result.indices[row].tolist() == indices.tolist()
        assert result.values[row].numpy().tobytes() == a[indices].tobytes()
        assert result.residual[row].numpy().tobytes() == left.tobytes()
    assert not result.nonfinite.any()


def rows_of(kind: str, rows: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows of a distribution that breaks one kind of top-k."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, n, generator=generator)
    made = {
        "normal": lambda: normal,
        "zero": lambda: torch.zeros(rows, n),
        "equal": lambda: torch.full((rows, n), -0.25),
        "ties": lambda: (normal * 2).round(),  # a dozen values, both signs
        "signed_zeros": lambda: torch.where(normal > 0, 0.0, -0.0) * 1.0,
        "denormal": lambda: (normal * 100).round() * 1e-45 if dtype == torch.float32 else normal * 1e-7,
        "mostly_zero": lambda: torch.where(normal > 3, normal, 0.0),
        "ascending": lambda: torch.arange(n).float().expand(rows, n).contiguous() / max(n, 1),
        "descending": lambda: -torch.arange(n).flip(0).float().expand(rows, n).contiguous() / max(n, 1),
        "wide": lambda: normal.sign() * torch.exp(normal * 5).clamp(max=60000),
        "cluster": lambda: torch.where(torch.arange(n) < n // 37, normal * 1000, normal),
    }
    return made[kind]().to(dtype)


KINDS = [
    "normal",
    "zero",
    "equal",
    "ties",
    "signed_zeros",
    "denormal",
    "mostly_zero",
    "ascending",
    "descending",
    "wide",
]
KINDS += ["cluster"]

# ---- the reference against the oracle, and the C++ against the reference ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(0, 0), (1, 0), (1, 1), (2, 1), (97, 5), (97, 97), (1009, 200), (4099, 41)])
def test_reference_equals_oracle(kind: str, dtype: torch.dtype, n: int, k: int) -> None:
    update, residual = rows_of(kind, 2, n, dtype), rows_of(kind, 2, n, seed=1)
    for r in (None, residual):
        assert_oracle(reference_topk(update, r, k), update, r, [(0, n, k)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "chunk"), [(0, 4), (1, 4), (63, 64), (64, 64), (65, 64), (127, 64), (1009, 128), (50, 1)]
)
@pytest.mark.parametrize("density", [0.001, 0.05, 0.5, 1.0])
def test_reference_chunks_equal_oracle(kind: str, n: int, chunk: int, density: float) -> None:
    update, residual = rows_of(kind, 2, n), rows_of(kind, 2, n, seed=1)
    pieces = [(b, min(b + chunk, n), ops.count_kept(min(chunk, n - b), density)) for b in range(0, n, chunk)]
    result = reference_chunk_topk(update, residual, density, chunk)
    assert result.indices.shape[1] == ops.chunk_count_kept(n, density, chunk)
    assert_oracle(result, update, residual, pieces)


SMALL = [0, 1, 2, 3, 15, 16, 17, 31, 33, 255, 256, 257, 1009, 4095, 4096, 4097]


@needs_extension
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cpu_equals_reference(kind: str, dtype: torch.dtype) -> None:
    for n in SMALL:
        update, residual = rows_of(kind, 3, n, dtype), rows_of(kind, 3, n, seed=1)
        for k in sorted({0, min(1, n), n // 100, n // 20, n // 5, n // 2, n}):
            for r in (None, residual):
                expected = reference_topk(update, r, k)
                for _ in each_instruction_set():
                    assert_same_bits(ops.topk(update, r, k=k), expected)


@needs_extension
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(65_537, 655), (70_001, 3), (70_001, 20_000), (150_007, 1500)])
def test_cpu_equals_reference_streamed(kind: str, n: int, k: int) -> None:
    update, residual = rows_of(kind, 1, n), rows_of(kind, 1, n, seed=1)
    for r in (None, residual):
        expected = reference_topk(update, r, k)
        for _ in each_instruction_set():
            assert_same_bits(ops.topk(update, r, k=k), expected)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [0, 1, 100_003 // 100, 100_003 // 10, 100_003])
def test_cpu_equals_reference_streamed_dtypes(dtype: torch.dtype, k: int) -> None:
    update, residual = rows_of("normal", 5, 100_003, dtype), rows_of("normal", 5, 100_003, seed=1)
    assert_same_bits(ops.topk(update, residual, k=k), reference_topk(update, residual, k))


@needs_extension
@pytest.mark.parametrize("k", [4_300, 430_000])
def test_cpu_equals_reference_past_the_caches(k: int) -> None:
    """From 2^22 elements on the residual is stored past the caches; rows that begin at odd offsets, too."""
    update, residual = rows_of("normal", 3, 1_400_337), rows_of("normal", 3, 1_400_337, seed=1)
    assert_same_bits(ops.topk(update, residual, k=k), reference_topk(update, residual, k))
    got = ops.chunk_topk(update, residual, density=k / 4_300_000)
    assert_same_bits(got, reference_chunk_topk(update, residual, k / 4_300_000, 4096))


@needs_extension
@pytest.mark.parametrize("k", [1500, 15000])
def test_cpu_is_exact_where_the_sample_misleads(k: int) -> None:
    """The estimate of the threshold sees none of the large elements, or nothing else."""
    n = 150_000
    for hidden in (slice(0, k), slice(n - k - 7, n), slice(3, None, n // k), slice(0, 3 * k)):
        update = rows_of("normal", 1, n) * 1e-3
        update[:, hidden] = 5.0
        assert_same_bits(ops.topk(update, k=k), reference_topk(update, None, k))


@needs_extension
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_cpu_chunks_equal_reference(kind: str, chunk: int) -> None:
    for n in (chunk - 1, chunk, chunk + 1, 3 * chunk + 5):
        update, residual = rows_of(kind, 2, n), rows_of(kind, 2, n, seed=1)
        for density in (0.01, 0.1, 1.0):
            expected = reference_chunk_topk(update, residual, density, chunk)
            for _ in each_instruction_set():
                assert_same_bits(ops.chunk_topk(update, residual, density=density, chunk=chunk), expected)


@needs_extension
@pytest.mark.parametrize(("rows", "n"), [(1, 140_011), (5, 75_000)])
@pytest.mark.parametrize("density", [0.01, 0.1])
def test_cpu_long_chunks_equal_reference(rows: int, n: int, density: float) -> None:
    """Chunks that are streamed, one after the other or side by side."""
    update, residual = rows_of("normal", rows, n), rows_of("ties", rows, n, seed=1)
    got = ops.chunk_topk(update, residual, density=density, chunk=70_000)
    assert_same_bits(got, reference_chunk_topk(update, residual, density, 70_000))


@needs_extension
def test_neighbouring_chunks_need_not_be_alike() -> None:
    """The threshold of one chunk is the guess for the next one: scales that jump up and down, and zeros."""
    scale = torch.tensor([1.0, 1e-6, 1e6, 0.0, 1.0, 1e-30, 1e30, 1.0]).repeat_interleave(512)
    update = rows_of("normal", 3, 4096) * scale
    for density in (0.01, 0.3):
        expected = reference_chunk_topk(update, None, density, 512)
        for _ in each_instruction_set():
            assert_same_bits(ops.chunk_topk(update, density=density, chunk=512), expected)


@needs_extension
def test_half_precision_conversion_is_exact() -> None:
    """Every finite pattern of both half types arrives as torch converts it, denormals and the sign of zero included."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        update = patterns.view(dtype)
        update = update[torch.isfinite(update)].view(1, -1)
        assert_same_bits(ops.topk(update, k=update.shape[1]), reference_topk(update, None, update.shape[1]))
