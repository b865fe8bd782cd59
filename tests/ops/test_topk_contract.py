"""What topk and chunk_topk promise beside the selection: bad rows, threads, memory, arguments, operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsynsam import ops
from fedsynsam.errors import ArgumentError
from fedsynsam.ops import TopK, backend

needs_extension = pytest.mark.skipif(backend.extension is None, reason="the C++ extension is not built")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_extension)]


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(kind: str, rows: int, n: int, seed: int = 0) -> Tensor:
    normal = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    return {"normal": normal, "ties": (normal * 2).round(), "equal": torch.full((rows, n), -0.25)}[kind]


def assert_same_bits(got: TopK, expected: TopK) -> None:
    for name, x, y in zip(TopK._fields, got, expected, strict=True):
        assert x.shape == y.shape, name
        x, y = (t.view(torch.int32) if t.dtype == torch.float32 else t for t in (x, y))
        assert torch.equal(x, y), name


# ---- rows that are not finite ----


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [500, 70_001])
@pytest.mark.parametrize("with_residual", [False, True])
def test_row_that_is_not_finite(name: str, bad: float, n: int, with_residual: bool) -> None:
    rows, k = (64, 11) if n == 500 else (6, 700)
    update, residual = rows_of("normal", rows, n), rows_of("normal", rows, n, seed=1)
    broken = update.clone()
    broken[rows // 2, n - 3] = bad
    others = torch.arange(rows) != rows // 2
    r = residual if with_residual else None
    with backend.use_backend(name):
        results = [(ops.topk(x, r, k=k), ops.chunk_topk(x, r, density=0.1, chunk=100)) for x in (broken, update)]
    for got, whole in zip(*results, strict=True):
        assert got.nonfinite.tolist() == [row == rows // 2 for row in range(rows)]
        assert got.indices[rows // 2].tolist() == list(range(got.indices.shape[1]))
        assert not got.values[rows // 2].any()
        untouched = residual[rows // 2] if with_residual else torch.zeros(n)
        assert torch.equal(got.residual[rows // 2].view(torch.int32), untouched.view(torch.int32))
        assert_same_bits(TopK(*(x[others] for x in got)), TopK(*(x[others] for x in whole)))


@pytest.mark.parametrize("n", [3, 70_000])
def test_overflow_of_the_sum_is_flagged(n: int) -> None:
    big = torch.full((1, n), 3e38)
    result = ops.topk(big, big, k=2)
    assert result.nonfinite.item()
    assert torch.equal(result.residual, big)


# ---- determinism, memory, layout ----


@needs_extension
@pytest.mark.parametrize(("rows", "n"), [(1, 400_009), (3, 150_001), (7, 30_011), (64, 2_003)])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal"])
def test_threads_do_not_change_bits(threads: None, rows: int, n: int, kind: str) -> None:
    update, residual = rows_of(kind, rows, n), rows_of(kind, rows, n, seed=1)
    results = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        for k in (n // 100, n // 7):
            results.append((ops.topk(update, residual, k=k), ops.chunk_topk(update, residual, density=k / n)))
    for one, many in zip(results[:2] * 2, results[2:], strict=True):
        assert_same_bits(one[0], many[0])
        assert_same_bits(one[1], many[1])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("garbage", [math.nan, 7e30])
@pytest.mark.parametrize(("rows", "n"), [(3, 1001), (1, 70_001), (0, 5), (2, 0)])
def test_out_overwrites_everything(name: str, garbage: float, rows: int, n: int) -> None:
    update, residual = rows_of("normal", rows, n), rows_of("normal", rows, n, seed=1)
    k = n // 9

    def dirty(width: int) -> TopK:
        return TopK(
            torch.full((rows, width), -77, dtype=torch.int32),
            torch.full((rows, width), garbage),
            torch.full((rows, n), garbage),
            torch.ones(rows, dtype=torch.bool),
        )

    with backend.use_backend(name):
        out = dirty(k)
        got = ops.topk(update, residual, k=k, out=out)
        assert all(x is y for x, y in zip(got, out, strict=True))
        assert_same_bits(got, ops.topk(update, residual, k=k))
        out = dirty(ops.chunk_count_kept(n, 0.03, 128))
        got = ops.chunk_topk(update, residual, density=0.03, chunk=128, out=out)
        assert_same_bits(got, ops.chunk_topk(update, residual, density=0.03, chunk=128))


@needs_extension
@pytest.mark.parametrize(("n", "density"), [(1000, 0.05), (4097, 0.5), (70_001, 0.01), (70_001, 0.2)])
def test_nothing_is_written_beside_the_outputs(n: int, density: float) -> None:
    """Outputs in the middle of larger buffers, at odd offsets: the guards around them stay as they were."""
    update = rows_of("ties", 2, n)
    for width, call in (
        (ops.count_kept(n, density), lambda out: ops.topk(update, k=out.indices.shape[1], out=out)),
        (
            ops.chunk_count_kept(n, density, 100),
            lambda out: ops.chunk_topk(update, density=density, chunk=100, out=out),
        ),
    ):
        buffers = [torch.full((2 * size + 66,), -3, dtype=torch.int32) for size in (width, width, n)]
        middles = [b[33:-33].view(2, -1) for b in buffers]
        out = TopK(middles[0], middles[1].view(torch.float32), middles[2].view(torch.float32), torch.zeros(2).bool())
        call(out)
        for buffer in buffers:
            assert (buffer[:33] == -3).all()
            assert (buffer[-33:] == -3).all()


def test_inputs_are_unchanged_and_not_aliased() -> None:
    update, residual = rows_of("normal", 2, 999), rows_of("normal", 2, 999, seed=1)
    kept = update.clone(), residual.clone()
    for result in (ops.topk(update, residual, k=9), ops.chunk_topk(update, residual, density=0.1)):
        assert torch.equal(update, kept[0])
        assert torch.equal(residual, kept[1])
        assert result.residual.data_ptr() not in (update.data_ptr(), residual.data_ptr())


def test_non_contiguous_inputs() -> None:
    wide = rows_of("normal", 7, 600)
    update, residual = wide.t()[:, 1:6], wide.flip(0).t()[:, 1:6]
    assert_same_bits(ops.topk(update, residual, k=2), ops.topk(update.contiguous(), residual.contiguous(), k=2))
    sliced = wide[:, ::3]
    got = ops.chunk_topk(sliced, density=0.1, chunk=50)
    assert_same_bits(got, ops.chunk_topk(sliced.contiguous(), density=0.1, chunk=50))


def test_gradients_are_not_recorded() -> None:
    update = rows_of("normal", 1, 50).requires_grad_()
    result = ops.topk(update, k=3)
    assert not result.values.requires_grad
    assert not result.residual.requires_grad


# ---- properties ----

floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**120), max_value=2.0**120)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=90), st.data())
def test_nothing_is_lost(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    """What is sent plus the new residual is update + old residual, and nothing kept is larger than what is sent."""
    update, residual = torch.tensor(pairs).t().unsqueeze(1)
    n = len(pairs)
    k = data.draw(st.integers(0, n))
    density, chunk = data.draw(st.floats(0.01, 1.0)), data.draw(st.integers(1, n + 1))
    for result in (ops.topk(update, residual, k=k), ops.chunk_topk(update, residual, density=density, chunk=chunk)):
        assert (result.indices.diff(dim=1) > 0).all()
        sent = torch.zeros(1, n).scatter_(1, result.indices.long(), result.values)
        assert ((sent == 0) | (result.residual == 0)).all()
        assert torch.equal(sent + result.residual, update + residual)
    result = ops.topk(update, residual, k=k)
    if 0 < k < n:
        assert result.values.abs().min() >= result.residual.abs().max()


@pytest.mark.parametrize(
    ("n", "density", "kept"),
    [(0, 0.5, 0), (1, 1e-9, 1), (10, 0.05, 1), (10, 0.25, 3), (10, 0.24, 2), (7, 1.0, 7), (4096, 0.01, 41)],
)
def test_count_kept(n: int, density: float, kept: int) -> None:
    assert ops.count_kept(n, density) == kept


def test_chunk_count_kept() -> None:
    assert ops.chunk_count_kept(0, 0.01, 4096) == 0
    assert ops.chunk_count_kept(3 * 4096, 0.01, 4096) == 123
    assert ops.chunk_count_kept(3 * 4096 + 1, 0.01, 4096) == 124


# ---- arguments ----

UPDATE, RESIDUAL = torch.randn(2, 40), torch.zeros(2, 40)


def outputs(rows: int = 2, n: int = 40, k: int = 4) -> TopK:
    values = torch.zeros(rows, k)
    return TopK(values.to(torch.int32), values, torch.zeros(rows, n), torch.zeros(rows, dtype=torch.bool))


@pytest.mark.parametrize(
    "call",
    [lambda *a, **o: ops.topk(*a, k=4, **o), lambda *a, **o: ops.chunk_topk(*a, density=0.1, chunk=10, **o)],
    ids=["topk", "chunk_topk"],
)
@pytest.mark.parametrize(
    ("update", "residual", "out", "message"),
    [
        ([1.0], None, None, "update is a list; expected a tensor"),
        (UPDATE[0], None, None, r"update has shape \(40,\); expected two dimensions"),
        (UPDATE.double(), None, None, "update has dtype torch.float64; expected torch.float32 or"),
        (UPDATE.int(), None, None, "update has dtype torch.int32"),
        (UPDATE, 0.0, None, "residual is a float"),
        (UPDATE, RESIDUAL.bfloat16(), None, "residual has dtype torch.bfloat16; expected torch.float32"),
        (UPDATE, RESIDUAL[:, 1:], None, r"residual has shape \(2, 39\); expected \(2, 40\)"),
        (UPDATE, RESIDUAL[:1], None, "residual has shape"),
        (UPDATE, RESIDUAL.to("meta"), None, "residual is on meta; expected cpu"),
        (UPDATE, None, UPDATE, "out is a Tensor; expected a tuple of indices, values, residual, nonfinite"),
        (UPDATE, None, outputs()[:3], "expected a tuple of"),
        (UPDATE, None, outputs()._replace(indices=None), "out.indices is a NoneType"),
        (UPDATE, None, outputs(k=5), r"out.indices has shape \(2, 5\); expected \(2, 4\)"),
        (UPDATE, None, outputs(n=41), "out.residual has shape"),
        (UPDATE, None, outputs()._replace(indices=torch.zeros(2, 4)), "out.indices has dtype"),
        (UPDATE, None, outputs()._replace(values=torch.zeros(2, 4, device="meta")), "out.values is on meta"),
        (UPDATE, None, outputs()._replace(values=torch.zeros(4, 2).t()), "out.values is not contiguous"),
        (UPDATE, None, outputs()._replace(nonfinite=torch.zeros(2)), "out.nonfinite has dtype"),
        (UPDATE, RESIDUAL, outputs()._replace(residual=RESIDUAL), "out.residual overlaps residual"),
        (UPDATE, None, outputs()._replace(residual=UPDATE), "out.residual overlaps update"),
    ],
)
def test_wrong_tensors(call: Callable[..., TopK], update: Any, residual: Any, out: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(update, residual, out=out)


def test_partial_overlap_is_refused() -> None:
    buffer = torch.zeros(130)
    residual = buffer[:80].view(2, 40)
    with pytest.raises(ArgumentError, match="residual overlaps residual"):
        ops.topk(UPDATE, residual, k=4, out=outputs()._replace(residual=buffer[50:].view(2, 40)))
    with pytest.raises(ArgumentError, match=r"residual overlaps out\.values"):
        ops.topk(UPDATE, k=4, out=outputs()._replace(values=buffer[:8].view(2, 4), residual=residual))


@pytest.mark.parametrize("k", [-1, 41, 2**40, 1.0, "3", None, True])
def test_wrong_k(k: Any) -> None:
    with pytest.raises(ArgumentError, match="k is "):
        ops.topk(UPDATE, k=k)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0000001, math.nan, math.inf, "0.1", None, True])
def test_wrong_density(density: Any) -> None:
    with pytest.raises(ArgumentError, match=r"density is .*; expected a number above 0 and at most 1"):
        ops.chunk_topk(UPDATE, density=density)


@pytest.mark.parametrize("chunk", [0, -4096, 2**31, 64.0, None])
def test_wrong_chunk(chunk: Any) -> None:
    with pytest.raises(ArgumentError, match="chunk is "):
        ops.chunk_topk(UPDATE, density=0.1, chunk=chunk)


def test_rows_too_long_for_int32_are_refused() -> None:
    long = torch.empty(1, 2**31, device="meta")
    with pytest.raises(ArgumentError, match="rows of 2147483648 elements; expected at most 2147483647"):
        ops.topk(long, k=1)


# ---- operators ----


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("rows", "n"), [(2, 100), (1, 0)])
def test_operators_pass_opcheck(with_residual: bool, rows: int, n: int) -> None:
    update, residual = torch.randn(rows, n), torch.randn(rows, n) if with_residual else None
    namespace, k = torch.ops.fedsynsam, n // 10
    torch.library.opcheck(namespace.topk.default, (update, residual, k))
    torch.library.opcheck(namespace.topk_out.default, (update, residual, k, *outputs(rows, n, k)))
    k = ops.chunk_count_kept(n, 0.1, 30)
    torch.library.opcheck(namespace.chunk_topk.default, (update, residual, 0.1, 30))
    torch.library.opcheck(namespace.chunk_topk_out.default, (update, residual, 0.1, 30, *outputs(rows, n, k)))


def test_compiled_code_gives_the_same() -> None:
    def compress(update: Tensor, residual: Tensor) -> tuple[TopK, TopK]:
        return ops.topk(update * 2, residual, k=7), ops.chunk_topk(update * 2, residual, density=0.1, chunk=30)

    update, residual = torch.randn(2, 100), torch.randn(2, 100)
    compiled = torch.compile(compress, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(update, residual), compress(update, residual), strict=True):
        assert_same_bits(TopK(*got), expected)
