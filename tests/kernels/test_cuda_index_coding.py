"""The CUDA kernels of encode_indices and decode_indices, emulated on the CPU thread by thread, against the reference.

What lies before and after the outputs must stay; outputs start as rubbish.
"""

from __future__ import annotations

import pytest
import torch
from emulation import Guarded, assert_bits, emulated, library
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsynsam.kernels.reference import index_coding as reference
from fedsynsam.ops import DecodedIndices, decode_indices, encode_indices, index_words

# Blocks of 2048 ranks and of 256 words of the high vector, and their neighbours.
SIZES = [(1, 1), (2, 1), (33, 32), (1009, 1009), (2**31 - 1, 3), (4096, 2047), (5000, 2048), (5000, 2049)]
SIZES += [(12_289, 4096), (60_000, 5000), (10**6, 2500), (9000, 8999)]


def draw(rows: int, n: int, k: int) -> Tensor:
    picks = [torch.randperm(n)[:k] if n < 2**24 else torch.randint(n, (4 * k,)).unique()[:k] for _ in range(rows)]
    return torch.stack([pick.sort().values for pick in picks]).to(torch.int32)


def check_encode(indices: Tensor, n: int, shift: int = 0) -> Tensor:
    rows, k = indices.shape
    out = Guarded(torch.full((rows, index_words(n, k)), -1, dtype=torch.int32), shift)
    with emulated():
        encode_indices(Guarded(indices, shift).tensor, n=n, out=out.tensor)
    assert_bits(out.tensor, reference.encode_indices(indices, n))
    assert out.intact()
    return out.tensor


def check_decode(words: Tensor, n: int, k: int, shift: int = 0) -> Tensor:
    rows = words.shape[0]
    indices = Guarded(torch.full((rows, k), -7, dtype=torch.int32), shift)
    valid = Guarded(torch.full((rows,), 5, dtype=torch.uint8))
    out = DecodedIndices(indices.tensor, valid.tensor.view(torch.bool))
    with emulated():
        decode_indices(Guarded(words, shift).tensor, n=n, k=k, out=out)
    expected, expected_valid = reference.decode_indices(words, n, k)
    assert_bits(out.indices, expected)
    assert_bits(out.valid, expected_valid)
    assert indices.intact()
    assert valid.intact()
    return out.valid


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_equals_the_reference(n, k):
    torch.manual_seed(n)
    for rows, shift in ((1, 0), (3, 1)):
        indices = draw(rows, n, k)
        words = check_encode(indices, n, shift)
        assert check_decode(words, n, k, shift).all()


@pytest.mark.parametrize("where", ["begin", "end", "clusters"])
def test_indices_that_lie_unevenly(where):
    """A block's ones may span more words than its window of shared memory holds."""
    n, k = 200_000, 4500
    spread = torch.arange(k) * 40
    middle = torch.where(torch.arange(k) < k // 2, torch.arange(k), n - k + torch.arange(k))
    indices = {"begin": torch.arange(k), "end": n - k + torch.arange(k), "clusters": middle}[where]
    rows = torch.stack([indices, spread]).to(torch.int32)
    assert check_decode(check_encode(rows, n), n, k).all()


def test_sparse_blocks_reach_past_their_window():
    n, k = 10**6, 4096
    indices = torch.cat([torch.arange(2100), 2100 + torch.arange(1, k - 2100 + 1) * 499]).to(torch.int32)
    assert check_decode(check_encode(indices.view(1, -1), n), n, k).all()


@pytest.mark.parametrize("n", [5000, 70_000])
def test_rubbish_indices_stay_within_the_stream(n):
    torch.manual_seed(n)
    k = 2100
    rubbish = torch.randint(-(2**31), 2**31, (2, k), dtype=torch.int64).to(torch.int32)
    shuffled = draw(1, n, k)[:, torch.randperm(k)]
    for indices in (rubbish, shuffled, draw(1, n, k).flip(1), torch.zeros(1, k, dtype=torch.int32)):
        words = check_encode(indices, n)
        check_decode(words, n, k)


def test_hostile_words():
    """All ones, all zeros, noise, one bit too many or too few, and padding, among legal rows."""
    n, k = 20_000, 3000
    words = encode_indices(draw(8, n, k), n=n)
    words[1], words[2] = -1, 0
    words[3] = torch.randint(-(2**31), 2**31, words[3].shape, dtype=torch.int64).to(torch.int32)
    words[4, -1] ^= -(2**31)  # the last bit is padding
    words[5, -20] |= 1 << 7
    words[5, -20] ^= 1 << 7
    words[5, -40:-30] = 0
    words[7, 4] ^= 1 << 9  # a low part: legal as long as the order holds
    assert check_decode(words, n, k).tolist()[:7] == [True, False, False, False, False, False, True]


def test_a_low_part_out_of_order_is_refused():
    n, k = 80_000, 2600
    indices = torch.arange(k, dtype=torch.int32).view(1, -1) * 16
    for rank in (0, 1023, 2047, 2048, k - 2):
        swapped = indices.clone()
        swapped[0, rank + 1] = indices[0, rank] + 1
        swapped[0, rank] += 2
        assert not check_decode(check_encode(swapped, n), n, k).item()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_words(data):
    n = data.draw(st.integers(1, 3000))
    k = data.draw(st.integers(1, n))
    picked = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:k].sort().values.to(torch.int32)
    words = reference.encode_indices(picked.view(1, -1), n).repeat(2, 1)
    for _ in range(data.draw(st.integers(1, 3))):
        words[1, data.draw(st.integers(0, words.shape[1] - 1))] ^= 1 << data.draw(st.integers(0, 30))
    assert check_decode(words, n, k)[0]


def test_many_tiles_a_block():
    """A row has at most 1024 blocks: from 262144 words on, a block takes several tiles."""
    counts = library().decode_indices_cuda_counts
    assert counts(10, 0) == 0
    assert counts(10, 10) == 1
    assert counts(2**31 - 1, 2**31 - 1) == 1024
    for k in (1000, 10**6, 3 * 10**6, 10**8):
        high_words = (k + ((100 * k - 1) >> 6) + 31) // 32
        tiles = -(-high_words // 256)
        share = -(-tiles // 1024)
        assert counts(100 * k, k) == -(-tiles // share)


@pytest.mark.slow
def test_blocks_of_several_tiles_equal_the_reference():
    n, k = 9_000_000, 4_300_000
    indices = torch.randperm(n)[:k].sort().values.to(torch.int32).view(1, -1)
    with emulated():
        words = encode_indices(indices, n=n)
        decoded = decode_indices(words, n=n, k=k)
        words[0, -100] ^= 1
        refused = decode_indices(words, n=n, k=k)
    assert decoded.valid.item()
    assert_bits(decoded.indices, indices)
    assert not refused.valid.item()
    assert_bits(refused.indices, torch.arange(k, dtype=torch.int32).view(1, -1))


def test_nothing_to_do():
    with emulated():
        assert encode_indices(torch.zeros(2, 0, dtype=torch.int32), n=5).shape == (2, 0)
        assert encode_indices(torch.zeros(0, 3, dtype=torch.int32), n=5).shape == (0, index_words(5, 3))
        assert decode_indices(torch.zeros(2, 0, dtype=torch.int32), n=0, k=0).valid.tolist() == [True, True]
        assert decode_indices(torch.zeros(0, index_words(5, 3), dtype=torch.int32), n=5, k=3).valid.shape == (0,)


def test_a_grid_too_large_is_refused():
    assert library().encode_indices_cuda(0, 1 << 31, 1, 1, 0, 0) == -1
    assert library().decode_indices_cuda(0, 1 << 31, 1, 1, 0, 0, 0, 0) == -1
