"""Faults far behind the start: `checks` judges block by block, and names the place in the whole payload."""

import numpy as np
import pytest
import torch

from fedsynsam import ops
from fedsynsam.wire import checks
from fedsynsam.wire.plan import parse_plan

N = 1_000_003


@pytest.mark.parametrize("place", [0, checks._BLOCK - 1, checks._BLOCK, N - 1])
def test_values(place):
    values = torch.ones(N)
    assert checks.fault_of_values(values) == ""
    values[place] = torch.nan
    values[place + 1 :] = torch.inf
    assert checks.fault_of_values(values) == f"values: entry {place} is nan; all must be finite"


@pytest.mark.parametrize("place", [0, checks._BLOCK - 1, checks._BLOCK, N - 1])
def test_codes(place):
    codes = bytearray(N)
    assert checks.fault_of_codes(codes, 4) == ""
    codes[place] = 0x18
    codes[place + 1 :] = b"\x81" * (N - place - 1)
    assert checks.fault_of_codes(codes, 4).startswith(f"codes: byte {place} is 0x18; ")


@pytest.mark.parametrize("place", [0, 300_000, N // 2])
def test_chunks(place):
    plan = parse_plan("chunktopk:0.5[chunk=2]")
    indices = torch.arange(0, N, 2, dtype=torch.int32)
    assert checks.fault_of_chunks(indices, plan, N) == ""
    indices[place] += 2 if place < N // 2 else -2
    fault = checks.fault_of_chunks(indices, plan, N)
    assert fault.startswith(f"indices: entry {place} is {int(indices[place])}, outside chunk {place} ")


def pairs():
    """The words of 0, 1, 8, 9, 16, 17 and so on: one low bit an index, its place in the words that of the index."""
    indices = torch.arange(N, dtype=torch.int32)
    indices = indices[indices % 8 < 2]
    words = ops.encode_indices(indices[None], n=N)[0].numpy().view(np.uint32).copy()
    return words, len(indices)


def flip(words, bit):
    words[bit // 32] ^= np.uint32(1 << bit % 32)


def test_a_right_stream_of_indices():
    assert checks.fault_of_index_words(pairs()[0], N, pairs()[1]) == "indices: not a canonical Elias-Fano stream"


@pytest.mark.parametrize("place", [0, 100_000, 249_998])
def test_order_of_indices(place):
    words, k = pairs()
    flip(words, place)
    flip(words, place + 1)
    assert checks.fault_of_index_words(words, N, k) == f"indices: not ascending at entry {place + 1}"


def test_range_of_indices():
    words, k = pairs()
    last, n = 1_000_001, 1_000_001  # the last index is n: one too much, but within the same high value
    assert (last // 2, k % 2) == ((n - 1) // 2, 0)
    assert checks.fault_of_index_words(words, n, k) == f"indices: {last} is out of range for {n} elements"


def test_number_and_padding_of_indices():
    words, k = pairs()
    high = -(-k // 32) * 32
    flip(words, high + 400_001)
    marked = int(checks._bits(words, high, 32 * len(words)).sum())
    assert marked in (k - 1, k + 1)
    assert checks.fault_of_index_words(words, N, k) == f"indices: the high bits mark {marked} indices, {k} expected"
    assert k % 32
    flip(words, high - 1)
    assert checks.fault_of_index_words(words, N, k) == "indices: padding bits are not 0"
