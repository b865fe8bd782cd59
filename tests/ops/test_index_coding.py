"""encode_indices and decode_indices: a bit-by-bit oracle, hostile words, and sizes against the entropy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsynsam import ops
from fedsynsam.ops import DecodedIndices, backend

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(backend.extension is None, reason="not built"))]


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    with backend.use_backend(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(rows: int, n: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(n, generator=generator)[:k].sort().values for _ in range(rows)]
    return torch.stack(picks).to(torch.int32) if rows else torch.zeros(0, k, dtype=torch.int32)


def oracle_words(indices: list[int], n: int) -> list[int]:
    """The words as Python integers, written from the definition with big integers."""
    k = len(indices)
    if k == 0:
        return []
    low = 0
    while k << (low + 1) <= n:
        low += 1
    low_vector = sum((index & ((1 << low) - 1)) << (i * low) for i, index in enumerate(indices))
    high_vector = sum(1 << ((index >> low) + i) for i, index in enumerate(indices))
    low_words, high_words = -(-k * low // 32), -(-(k + ((n - 1) >> low)) // 32)
    stream = low_vector | high_vector << (32 * low_words)
    return [stream >> (32 * w) & 0xFFFFFFFF for w in range(low_words + high_words)]


def signed(words: list[int]) -> Tensor:
    return torch.tensor([w - (1 << 32) if w >> 31 else w for w in words], dtype=torch.int32)


SIZES = [
    (0, 0),
    (1, 0),
    (1, 1),
    (2, 1),
    (2, 2),
    (31, 31),
    (32, 1),
    (33, 32),
    (64, 63),
    (97, 13),
    (1009, 1),
    (1009, 100),
]
SIZES += [(1009, 1009), (4096, 41), (4099, 2048), (65537, 17), (10**6, 1000)]


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_words_equal_oracle(name: str, n: int, k: int) -> None:
    indices = draw(3, n, k)
    words = ops.encode_indices(indices, n=n)
    assert words.shape == (3, ops.index_words(n, k))
    for row in range(3):
        assert torch.equal(words[row], signed(oracle_words(indices[row].tolist(), n)))
    decoded = ops.decode_indices(words, n=n, k=k)
    assert torch.equal(decoded.indices, indices)
    assert decoded.valid.all()


@pytest.mark.parametrize("index", [[0], [2**31 - 2], [0, 2**31 - 2], [2**31 - 3, 2**31 - 2], [5, 2**30, 2**30 + 1]])
def test_longest_rows(name: str, index: list[int]) -> None:
    n = 2**31 - 1
    indices = torch.tensor([index], dtype=torch.int32)
    words = ops.encode_indices(indices, n=n)
    assert torch.equal(words[0], signed(oracle_words(index, n)))
    decoded = ops.decode_indices(words, n=n, k=len(index))
    assert decoded.valid.item()
    assert torch.equal(decoded.indices, indices)


@pytest.mark.parametrize("end", ["first", "last", "middle"])
def test_runs_of_neighbours(name: str, end: str) -> None:
    n, k = 10_007, 300
    begin = {"first": 0, "last": n - k, "middle": 5000}[end]
    indices = torch.arange(begin, begin + k, dtype=torch.int32).view(1, -1)
    words = ops.encode_indices(indices, n=n)
    assert torch.equal(words[0], signed(oracle_words(indices[0].tolist(), n)))
    assert torch.equal(ops.decode_indices(words, n=n, k=k).indices, indices)


def test_no_rows(name: str) -> None:
    words = ops.encode_indices(torch.zeros(0, 5, dtype=torch.int32), n=50)
    assert words.shape == (0, ops.index_words(50, 5))
    decoded = ops.decode_indices(words, n=50, k=5)
    assert decoded.indices.shape == (0, 5)
    assert decoded.valid.shape == (0,)


@pytest.mark.skipif(backend.extension is None, reason="the C++ extension is not built")
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(1, 3_000_000, 300_001), (1, 900_000, 450_000), (3, 900_000, 300_000), (40, 90_000, 9_900)]
)
def test_threads_do_not_change_bits(threads: None, rows: int, n: int, k: int) -> None:
    """Long rows are shared by threads, which meet within words."""
    indices = draw(rows, n, k)
    with backend.use_backend("reference"):
        expected = ops.encode_indices(indices, n=n)
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        words = ops.encode_indices(indices, n=n)
        assert torch.equal(words, expected)
        decoded = ops.decode_indices(words, n=n, k=k)
        assert decoded.valid.all()
        assert torch.equal(decoded.indices, indices)


@pytest.mark.skipif(backend.extension is None, reason="the C++ extension is not built")
def test_a_swap_is_seen_where_threads_meet(threads: None) -> None:
    """Two indices with equal high parts and swapped low parts, around the middle of the high vector."""
    torch.set_num_threads(2)
    n, k, low = 3_000_100, 300_000, 3  # the second thread begins at word 10560 of the high vector: bit 337920
    seen = 0
    for offset, rank in itertools.product(range(8), range(150_183, 150_190)):
        indices = torch.arange(k, dtype=torch.int32) * 10 + offset
        first = int(indices[rank])
        if first + 1 >> low != first >> low:
            continue
        indices[rank], indices[rank + 1] = first + 1, first
        words = ops.encode_indices(indices.view(1, -1), n=n)
        assert not ops.decode_indices(words, n=n, k=k).valid.item(), (offset, rank)
        seen += (first >> low) + rank == 337_919
    assert seen > 0, "no swap lies where the threads meet"


# ---- hostile words ----


def assert_sound(words: Tensor, n: int, k: int) -> DecodedIndices:
    """A row is valid if and only if encoding its indices gives its words; all indices are legal in any case."""
    decoded = ops.decode_indices(words, n=n, k=k)
    assert (decoded.indices >= 0).all()
    assert (decoded.indices < max(n, 1)).all()
    assert (decoded.indices.diff(dim=1) > 0).all()
    same = (ops.encode_indices(decoded.indices, n=n) == words).all(dim=1)
    assert torch.equal(same & decoded.valid, decoded.valid)
    first = torch.arange(k, dtype=torch.int32)
    for row in (~decoded.valid).nonzero().flatten():
        assert torch.equal(decoded.indices[row], first)
    return decoded


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_words_never_crash(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 2000))
    k = data.draw(st.integers(0, n))
    width = ops.index_words(n, k)
    word = st.integers(-(2**31), 2**31 - 1)
    rows = data.draw(st.lists(st.lists(word, min_size=width, max_size=width), min_size=1, max_size=3))
    words = torch.tensor(rows, dtype=torch.int32).view(len(rows), width)
    decoded = assert_sound(words, n, k)
    with backend.use_backend("reference"):
        expected = ops.decode_indices(words, n=n, k=k)
    assert torch.equal(decoded.valid, expected.valid)
    assert torch.equal(decoded.indices, expected.indices)


@pytest.mark.parametrize(("n", "k"), [(50, 7), (64, 32), (100, 1), (33, 33), (1000, 30)])
def test_every_flipped_bit_is_refused_or_canonical(name: str, n: int, k: int) -> None:
    words = ops.encode_indices(draw(1, n, k), n=n)
    flips = torch.ones(32, dtype=torch.int64) << torch.arange(32)
    flips = torch.where(flips >= 1 << 31, flips - (1 << 32), flips).to(torch.int32)
    width = words.shape[1]
    rows = words.repeat(width * 32, 1)
    rows.view(width, 32, width).diagonal(dim1=0, dim2=2).bitwise_xor_(flips.view(32, 1))
    assert (rows != words).any(dim=1).all()
    assert_sound(rows, n, k)


def test_only_the_bad_row_is_refused(name: str) -> None:
    n, k = 5000, 50
    indices = draw(64, n, k)
    words = ops.encode_indices(indices, n=n)
    words[17] = -1
    decoded = ops.decode_indices(words, n=n, k=k)
    assert decoded.valid.tolist() == [row != 17 for row in range(64)]
    others = torch.arange(64) != 17
    assert torch.equal(decoded.indices[others], indices[others])
    assert decoded.indices[17].tolist() == list(range(k))


@pytest.mark.parametrize("wrong", [[0, 5, 5], [5, 4, 9], [0, 1, 40], [0, 1, 12], [-1, 3, 4]])
def test_illegal_indices_do_not_decode(name: str, wrong: list[int]) -> None:
    """Equal, descending, or not below n: whatever words they give are refused, if they give any."""
    indices = torch.tensor([wrong], dtype=torch.int32)
    words = ops.encode_indices(indices, n=12)
    decoded = ops.decode_indices(words, n=12, k=3)
    assert not (decoded.valid.item() and decoded.indices.tolist() == [wrong])


# ---- properties ----


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5000), st.data())
def test_round_trip(n: int, data: st.DataObject) -> None:
    picked = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=80)))
    indices = torch.tensor([picked], dtype=torch.int32).view(1, len(picked))
    words = ops.encode_indices(indices, n=n)
    assert torch.equal(words[0], signed(oracle_words(picked, n)))
    decoded = ops.decode_indices(words, n=n, k=len(picked))
    assert decoded.valid.item()
    assert torch.equal(decoded.indices, indices)


@pytest.mark.parametrize("n", [10**6, 25_600_000, 2**31 - 1])
@pytest.mark.parametrize(("density", "bound"), [(0.001, 1.08), (0.01, 1.08), (0.1, 1.13)])
def test_size_is_close_to_the_entropy(n: int, density: float, bound: float) -> None:
    """log2 C(n, k) bits are the least that any code can need for k of n."""
    k = ops.count_kept(n, density)
    entropy = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert entropy <= 32 * ops.index_words(n, k) <= bound * entropy


# ---- memory and layout ----


def test_out_overwrites_everything(name: str) -> None:
    n, k = 3001, 77
    indices = draw(2, n, k)
    expected = ops.encode_indices(indices, n=n)
    out = torch.full_like(expected, -1)
    assert ops.encode_indices(indices, n=n, out=out) is out
    assert torch.equal(out, expected)
    target = DecodedIndices(torch.full_like(indices, -1), torch.zeros(2, dtype=torch.bool))
    decoded = ops.decode_indices(expected, n=n, k=k, out=target)
    assert decoded.indices is target.indices
    assert decoded.valid is target.valid
    assert target.valid.all()
    assert torch.equal(target.indices, indices)


def test_non_contiguous_inputs(name: str) -> None:
    indices = draw(4, 999, 60)
    words = ops.encode_indices(indices, n=999)
    assert torch.equal(ops.encode_indices(indices.t().contiguous().t(), n=999), words)
    decoded = ops.decode_indices(words.t().contiguous().t(), n=999, k=60)
    assert torch.equal(decoded.indices, indices)
