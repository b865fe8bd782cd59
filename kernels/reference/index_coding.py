"""Definition of `encode_indices` and `decode_indices` (Elias-Fano) in plain PyTorch, for any device.

With l = max(0, floor(log2(n / k))), bit t of a vector being bit t % 32 of its word t // 32:

    low vector    the low l bits of index i at the bits i*l ..., lowest first; ceil(k*l / 32) words
    high vector   a one at bit (index_i >> l) + i;  k + ((n - 1) >> l) bits in whole words, behind the low vector

All other bits are zero. P. Elias, "Efficient storage and retrieval by content and address of static files", 1974.
"""

from __future__ import annotations

import torch
from torch import Tensor


def low_bits(n: int, k: int) -> int:
    """Return l = max(0, floor(log2(n / k))), in integers."""
    return max(0, (n // k).bit_length() - 1) if k else 0


def index_words(n: int, k: int) -> int:
    """Return the number of 32-bit words of k indices below n."""
    return sum(vector_words(n, k))


def vector_words(n: int, k: int) -> tuple[int, int]:
    """Return the numbers of 32-bit words of the low and of the high vector."""
    if k == 0:
        return 0, 0
    low = low_bits(n, k)
    return (k * low + 31) // 32, (k + ((n - 1) >> low) + 31) // 32


def encode_indices(indices: Tensor, n: int) -> Tensor:
    """Return words [C, W] int32 of indices [C, k], ascending and below n.

    Indices are taken as unsigned; a one that would lie behind the end of the stream is left out.
    """
    rows, k = indices.shape
    low, (low_words, high_words) = low_bits(n, k), vector_words(n, k)
    index, device, length = indices.to(torch.int64) & 0xFFFFFFFF, indices.device, low_words + high_words
    bits = torch.zeros(rows, length * 32 + 1, dtype=torch.int64, device=device)
    bits[:, : k * low] = (index.unsqueeze(2) >> torch.arange(low, device=device) & 1).reshape(rows, k * low)
    ones = (index >> low) + torch.arange(k, device=device)
    ones = torch.where(ones < k + ((n - 1) >> low), low_words * 32 + ones, length * 32)
    bits.scatter_(1, ones, 1)
    words = (bits[:, :-1].reshape(rows, length, 32) << torch.arange(32, device=device)).sum(dim=2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def decode_indices(words: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Return (indices [C, k] int32, valid [C] bool) of words [C, W].

    A row is valid if and only if its words are the encoding of k ascending indices below n; the indices of an
    invalid row are 0..k-1.
    """
    rows, device = words.shape[0], words.device
    first = torch.arange(k, device=device).expand(rows, k)
    if k == 0:
        return first.to(torch.int32), torch.ones(rows, dtype=torch.bool, device=device)
    low, (low_words, _) = low_bits(n, k), vector_words(n, k)
    bits = (words.to(torch.int64).unsqueeze(2) >> torch.arange(32, device=device) & 1).flatten(1)
    low_vector, high_vector = bits[:, : low_words * 32], bits[:, low_words * 32 :]

    # The rank of a one is the number of ones before it; ranks from k on fall into a column that is cut off.
    rank = (high_vector.cumsum(dim=1) - 1).masked_fill(high_vector == 0, k).clamp(max=k)
    place = torch.arange(high_vector.shape[1], device=device).expand(rows, -1)
    high = torch.zeros(rows, k + 1, dtype=torch.int64, device=device).scatter_(1, rank, place)[:, :k] - first
    remainder = (low_vector[:, : k * low].reshape(rows, k, low) << torch.arange(low, device=device)).sum(dim=2)
    index = (high << low) + remainder

    valid = (high_vector.sum(dim=1) == k) & (index[:, -1] < n) & (index[:, 1:] > index[:, :-1]).all(dim=1)
    valid &= (low_vector[:, k * low :] == 0).all(dim=1)
    valid &= (high_vector[:, k + ((n - 1) >> low) :] == 0).all(dim=1)
    return torch.where(valid.view(-1, 1), index, first).to(torch.int32), valid
