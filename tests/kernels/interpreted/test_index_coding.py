"""The Triton kernels of encode_indices and decode_indices, interpreted, against the reference.

Outputs start as rubbish. With programs of few ranks and words, small rows have many of them.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from emulation import Guarded, assert_bits
from interpretation import interpreted
from torch import Tensor

from fedsynsam.kernels import launch
from fedsynsam.kernels.reference import index_coding as reference
from fedsynsam.ops import DecodedIndices, decode_indices, encode_indices, index_words

SIZES = [(1, 1), (2, 1), (33, 32), (1009, 1009), (2**31 - 1, 3), (4096, 2049), (9000, 4096), (60_000, 2500)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of 64 ranks, tiles of 4 words, at most 8 programs a row."""

    def decode(high_words: int) -> launch.DecodeLaunch:
        tiles = -(-high_words // 32)
        return launch.DecodeLaunch(4, tiles, -(-high_words // (4 * tiles)), 8, 128, 1)

    monkeypatch.setattr(launch, "ENCODE", launch.EncodeLaunch(64, 16, 1))
    monkeypatch.setattr(launch, "decode", decode)


def draw(rows: int, n: int, k: int) -> Tensor:
    picks = [torch.randperm(n)[:k] if n < 2**24 else torch.randint(n, (4 * k,)).unique()[:k] for _ in range(rows)]
    return torch.stack([pick.sort().values for pick in picks]).to(torch.int32)


def check_encode(indices: Tensor, n: int) -> Tensor:
    out = Guarded(torch.full((indices.shape[0], index_words(n, indices.shape[1])), -1, dtype=torch.int32))
    with interpreted():
        encode_indices(indices, n=n, out=out.tensor)
    assert_bits(out.tensor, reference.encode_indices(indices, n))
    assert out.intact()
    return out.tensor


def check_decode(words: Tensor, n: int, k: int) -> Tensor:
    rows = words.shape[0]
    indices = Guarded(torch.full((rows, k), -7, dtype=torch.int32))
    valid = Guarded(torch.full((rows,), 5, dtype=torch.uint8))
    out = DecodedIndices(indices.tensor, valid.tensor.view(torch.bool))
    with interpreted():
        decode_indices(words, n=n, k=k, out=out)
    expected, expected_valid = reference.decode_indices(words, n, k)
    assert_bits(out.valid, expected_valid)
    assert_bits(out.indices, expected)
    assert indices.intact()
    assert valid.intact()
    return out.valid


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_equals_the_reference(n, k):
    torch.manual_seed(n)
    assert check_decode(check_encode(draw(2, n, k), n), n, k).all()


@pytest.mark.parametrize(("n", "k"), [(65, 64), (700, 64), (2000, 65), (5000, 300), (1 << 20, 130), (300, 290)])
def test_many_programs_a_row(small, n, k):
    torch.manual_seed(n)
    assert check_decode(check_encode(draw(2, n, k), n), n, k).all()
    ends = torch.where(torch.arange(k) < k // 2, torch.arange(k), n - k + torch.arange(k)).to(torch.int32)
    assert check_decode(check_encode(ends.view(1, -1), n), n, k).all()


def test_rubbish_indices_stay_within_the_stream(small):
    torch.manual_seed(0)
    n, k = 3000, 200
    rubbish = torch.randint(-(2**31), 2**31, (2, k), dtype=torch.int64).to(torch.int32)
    for indices in (rubbish, draw(1, n, k).flip(1), draw(1, n, k)[:, torch.randperm(k)]):
        check_decode(check_encode(indices, n), n, k)


def test_hostile_words(small):
    torch.manual_seed(0)
    n, k = 2000, 300
    words = reference.encode_indices(draw(6, n, k), n)
    words[1], words[2] = -1, 0
    words[3] = torch.randint(-(2**31), 2**31, words[3].shape, dtype=torch.int64).to(torch.int32)
    words[4, -1] ^= -(2**31)  # the last bit is padding
    assert check_decode(words, n, k).tolist()[:5] == [True, False, False, False, False]


def test_every_flipped_bit(small):
    n, k = 1000, 70
    words = reference.encode_indices(draw(1, n, k), n)
    flips = (torch.ones(32, dtype=torch.int64) << torch.arange(32)).to(torch.int32)
    rows = words.repeat(words.shape[1] * 8, 1)
    for i in range(rows.shape[0]):
        rows[i, i // 8] ^= flips[i % 8 * 4 + i // 8 % 4]
    check_decode(rows, n, k)


def test_nothing_to_do():
    with interpreted():
        assert encode_indices(torch.zeros(2, 0, dtype=torch.int32), n=5).shape == (2, 0)
        assert encode_indices(torch.zeros(0, 3, dtype=torch.int32), n=5).shape == (0, index_words(5, 3))
        assert decode_indices(torch.zeros(2, 0, dtype=torch.int32), n=0, k=0).valid.tolist() == [True, True]
        assert decode_indices(torch.zeros(0, index_words(5, 3), dtype=torch.int32), n=5, k=3).valid.shape == (0,)


def test_a_grid_too_large_is_refused():
    with (
        mock.patch.object(launch, "MAX_GRID", 1),
        interpreted(),
        pytest.raises(launch.BackendError, match="2 programs"),
    ):
        encode_indices(draw(2, 100, 5), n=100)
