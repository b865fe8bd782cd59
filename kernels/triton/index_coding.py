"""encode_indices and decode_indices in Triton: see kernels/reference/index_coding.py for the layout.

Encoding clears the high vector and runs one kernel, each program of which owns a range of ranks: it gathers its words
of the low vector and adds its ones to the high vector by atomic_or, which has no order. Decoding counts the ones of
each share of the high vector, then writes the index of every one, then replaces the rows found to be illegal. Words
are never trusted: a row that does not hold exactly k ones writes no index.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty, int32, uint8

from .. import launch
from ..reference.index_coding import low_bits, vector_words


@triton.jit
def _split(program, blocks):
    """Row and place in the row of a program, for 64-bit offsets; the division needs but 32 bits."""
    row = program // blocks
    return row.to(tl.int64), (program - row * blocks).to(tl.int64)


@triton.jit
def _load_index(indices, i, mask):
    return tl.load(indices + i, mask, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def encode_ranks(
    indices, words, k, blocks, low, low_mask, low_words, high_bits, length, RANKS: tl.constexpr, WORDS: tl.constexpr
):  # fmt: skip
    row, block = _split(tl.program_id(0), blocks)
    first = block * RANKS
    count = tl.minimum(k - first, RANKS).to(tl.int32)
    indices += row * k + first
    words += row * length

    # Each word of the low vector gathers the indices that reach into it; first * low is a multiple of 32.
    used = (count * low + 31) // 32
    start = 0
    while start < used:
        w = start + tl.arange(0, WORDS)
        i = 32 * w // low
        bit = i * low - 32 * w
        word = (_load_index(indices, i, w < used) & low_mask) >> (-bit).to(tl.uint32)
        reach = low
        while reach < 32 + low:
            i += 1
            bit += low
            reach += low
            part = _load_index(indices, i, (w < used) & (i < count) & (bit < 32)) & low_mask
            word = word | (part << (bit & 31).to(tl.uint32))
        tl.store(words + first // 32 * low + w, word.to(tl.int32, bitcast=True), w < used)
        start += WORDS

    # Eight consecutive ranks mostly lie in two words of the high vector: those are gathered, the rest set one by one.
    high = words + low_words
    ranks = tl.arange(0, RANKS // 8) * 8
    base = ((_load_index(indices, ranks, ranks < count) >> low).to(tl.int64) + first + ranks) >> 5
    here = tl.zeros([RANKS // 8], tl.int32)
    after = tl.zeros([RANKS // 8], tl.int32)
    for step in tl.static_range(8):
        i = ranks + step
        bit = (_load_index(indices, i, i < count) >> low).to(tl.int64) + first + i
        one = tl.where((i < count) & (bit < high_bits), 1, 0) << (bit & 31).to(tl.int32)
        place = (bit >> 5) - base
        here = here | tl.where(place == 0, one, 0)
        after = after | tl.where(place == 1, one, 0)
        tl.atomic_or(high + (bit >> 5), one, (one != 0) & (place != 0) & (place != 1), sem="relaxed")
    tl.atomic_or(high + base, here, here != 0, sem="relaxed")
    tl.atomic_or(high + base + 1, after, after != 0, sem="relaxed")


@triton.jit
def _ones_in(word):
    """The number of ones in each 32-bit word, as int32."""
    x = word.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return ((x + (x >> 16)) & 63).to(tl.int32)


@triton.jit
def _is_clear(word, used):
    """Whether the bits of `word` from `used` on are zero; used = 0 stands for a full word."""
    return ((word.to(tl.uint32, bitcast=True) >> used) == 0) | (used == 0)


@triton.jit
def count_ones(
    words, counts, valid, blocks, tiles, low_words, high_words, low_used, high_used, length, TILE: tl.constexpr
):  # fmt: skip
    """Count the ones of each share; the first program of a row opens its verdict with what needs no index."""
    row, share = _split(tl.program_id(0), blocks)
    words += row * length
    high = words + low_words
    total = tl.zeros([TILE], tl.int32)
    tile = share * tiles
    end = tile + tiles
    while tile < end:
        w = tile * TILE + tl.arange(0, TILE)
        total += _ones_in(tl.load(high + w, w < high_words, other=0))
        tile += 1
    tl.store(counts + tl.program_id(0), tl.sum(total))
    if share == 0:
        low_end = tl.load(words + low_words - 1, low_words > 0, other=0)
        clear = _is_clear(low_end, low_used) & _is_clear(tl.load(high + high_words - 1), high_used)
        tl.store(valid + row, clear.to(tl.uint8))


@triton.jit
def _low_part(words, bit, low, low_mask, mask):
    """The low part that begins at `bit`, as uint32: at most two words hold it."""
    shift = bit & 31
    first = tl.load(words + (bit >> 5), mask & (low > 0), other=0).to(tl.uint32, bitcast=True)
    second = tl.load(words + (bit >> 5) + 1, mask & (shift + low > 32), other=0).to(tl.uint32, bitcast=True)
    part = (first >> shift.to(tl.uint32)) | (second << ((32 - shift) & 31).to(tl.uint32))
    return part & low_mask


@triton.jit
def select_ones(
    words, counts, indices, valid, n, k, blocks, tiles, low, low_mask, low_words, high_words, length,
    BLOCKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write the index of each one of a share; BLOCKS is the largest number of shares in a row.

    Bases are scalars of 64 bits; within a tile 32 bits suffice, also for an index: one that needs more has its one in
    the padding, which `count_ones` refuses.
    """
    row, share = _split(tl.program_id(0), blocks)
    lane = tl.arange(0, BLOCKS)
    in_row = tl.load(counts + row * blocks + lane, lane < blocks, other=0)
    words += row * length
    indices += row * k
    # A row has at most 2^32 places: a sum that wraps around is 0, never k.
    if tl.sum(in_row) != k:
        tl.store(valid + row, 0)
    else:
        before = tl.sum(tl.where(lane < share, in_row, 0)).to(tl.int64)
        tile = share * tiles
        end = tile + tiles
        while tile < end:
            place = tl.arange(0, TILE * 32)
            high = words + low_words + tile * TILE
            here = (place >> 5) < tl.minimum(high_words - tile * TILE, TILE).to(tl.int32)
            word = tl.load(high + (place >> 5), here, other=0)
            one = (word >> (place & 31)) & 1
            rank = tl.cumsum(one) - 1
            found = one != 0
            low_base = words + (before * low >> 5)
            low_bit = (before * low & 31).to(tl.int32) + rank * low
            part = _low_part(low_base, low_bit, low, low_mask, found)
            high_part = (tile * (TILE * 32) - before).to(tl.uint32) + (place - rank).to(tl.uint32)
            index = (high_part << low) | part
            tl.store(indices + before + rank, index.to(tl.int32, bitcast=True), found)
            # High parts never descend; they are equal if and only if the two ones are neighbours.
            left = tl.load(high + (place >> 5) - 1, found & ((place & 31) == 0) & (tile + place > 0), other=0)
            left = tl.where((place & 31) == 0, left >> 31, word >> ((place - 1) & 31))
            twins = found & ((left & 1) != 0)
            swapped = twins & (part <= _low_part(low_base, low_bit - low, low, low_mask, twins))
            wrong = swapped | (found & (rank == k - 1 - before) & (index >= n))
            tl.store(valid + row, 0, tl.max(wrong.to(tl.int32)) != 0)
            before += tl.sum(one)
            tile += 1


@triton.jit
def fill_illegal(valid, indices, k, blocks, BLOCK: tl.constexpr):
    row, block = _split(tl.program_id(0), blocks)
    if tl.load(valid + row) == 0:
        i = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(indices + row * k + i, i.to(tl.int32), i < k)


# ---- launchers: contiguous tensors of checked shapes ----


def encode_into(indices: Tensor, n: int, out: Tensor) -> None:
    """Write the index streams of rows of indices [C, k] into `out`, int32 [C, W]."""
    rows, k = indices.shape
    if rows * k == 0:
        return
    size, low, (low_words, _) = launch.ENCODE, low_bits(n, k), vector_words(n, k)
    blocks = -(-k // size.ranks)
    out[:, low_words:].zero_()
    encode_ranks[launch.grid("encode_indices", rows * blocks)](
        indices, out, k, blocks, low, (1 << low) - 1, low_words, k + ((n - 1) >> low), out.shape[1],
        RANKS=size.ranks, WORDS=size.words, num_warps=size.num_warps,
    )  # fmt: skip


def decode_into(words: Tensor, n: int, indices: Tensor, valid: Tensor) -> None:
    """Write the indices of rows of words [C, W] and the verdict on each into `indices` and `valid`."""
    rows, k = indices.shape
    if k == 0:
        valid.fill_(True)
    if rows * k == 0:
        return
    low, (low_words, high_words), valid = low_bits(n, k), vector_words(n, k), valid.view(uint8)
    size, high_bits = launch.decode(high_words), k + ((n - 1) >> low)
    counts = empty(rows * size.blocks, dtype=int32, device=words.device)
    grid = launch.grid("decode_indices", rows * size.blocks)
    count_ones[grid](
        words, counts, valid, size.blocks, size.tiles, low_words, high_words, k * low % 32,
        high_bits % 32, words.shape[1], TILE=size.tile, num_warps=size.num_warps,
    )  # fmt: skip
    select_ones[grid](
        words, counts, indices, valid, n, k, size.blocks, size.tiles, low, (1 << low) - 1,
        low_words, high_words, words.shape[1], BLOCKS=size.max_blocks, TILE=size.tile, num_warps=size.num_warps,
    )  # fmt: skip
    fills = -(-k // size.fill)
    fill_illegal[launch.grid("decode_indices", rows * fills)](
        valid, indices, k, fills, BLOCK=size.fill, num_warps=size.num_warps
    )  # fmt: skip
