"""Launch sizes of the Triton kernels, as pure functions of the shape: nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import BackendError

MAX_GRID = 2**31 - 1  # programs of one launch
PAYLOADS = 32  # that one launch of aggregate adds
MAX_BUCKET = 4096  # values of a bucket that one program of quantize holds
MAX_CHUNK = 8192  # elements of a chunk that one program of chunk_topk holds


def grid(op: str, programs: int) -> tuple[int]:
    """Return the grid of a launch; raise BackendError if the device cannot count so many programs."""
    if programs > MAX_GRID:
        raise BackendError(f"backend 'triton' would need {programs} programs for {op}; split the batch of rows")
    return (programs,)


class SamLaunch(NamedTuple):
    """How the sam kernels cut a row: `chunks` programs of `block` elements, `num_warps` warps each.

    `inline_partials` is the number of partial sums (a power of two) that the perturbation adds up itself, or 1 if
    there are so many that a launch of its own must do it.
    """

    block: int
    num_warps: int
    chunks: int
    inline_partials: int


def sam(n: int) -> SamLaunch:
    """Return the launch of the sam kernels for rows of `n` elements.

    16 elements a thread keep several 16-byte loads in flight in about 40 registers; rows shorter than a block take a
    smaller one, of at least 256 elements.
    """
    block = min(4096, max(256, _power_of_two(n)))
    chunks = -(-n // block)
    inline_partials = _power_of_two(chunks) if chunks <= 1024 else 1
    return SamLaunch(block, max(1, block // 512), chunks, inline_partials)


class EncodeLaunch(NamedTuple):
    """A program of encode_indices takes `ranks` ranks (a multiple of 32), and words of the low vector by `words`."""

    ranks: int
    words: int
    num_warps: int


ENCODE = EncodeLaunch(2048, 256, 4)


class DecodeLaunch(NamedTuple):
    """How decode_indices shares a row's high vector: `blocks` programs of `tiles` tiles of `tile` words each.

    `max_blocks` bounds `blocks`, so that each program can add the counts of those before it; `fill` indices of an
    illegal row are one program's.
    """

    tile: int
    tiles: int
    blocks: int
    max_blocks: int
    fill: int
    num_warps: int


def decode(high_words: int) -> DecodeLaunch:
    """Return the launch of decode_indices for rows whose high vector has `high_words` words (at least 1)."""
    tile, max_blocks = 64, 1024
    all_tiles = -(-high_words // tile)
    tiles = -(-all_tiles // max_blocks)
    return DecodeLaunch(tile, tiles, -(-all_tiles // tiles), max_blocks, 8192, 16)


class ChunkLaunch(NamedTuple):
    """A program of chunk_topk holds `block` elements; a flagged row is rewritten by tiles of `repair_block`."""

    block: int
    num_warps: int
    repair_block: int
    repair_tiles: int


def chunk_topk(chunk: int) -> ChunkLaunch:
    """Return the launch of chunk_topk for chunks of at most `chunk` elements.

    8 elements a thread take 64 registers (80 at worst), so that a multiprocessor mostly holds 1024 threads.
    """
    block = max(32, _power_of_two(chunk))
    return ChunkLaunch(block, max(1, block // 256), 1024, 32)


class BucketLaunch(NamedTuple):
    """A program of quantize holds `group` buckets; a flagged row is rewritten by tiles of `repair_block`."""

    group: int
    num_warps: int
    repair_block: int
    repair_tiles: int


def quantize(bucket: int) -> BucketLaunch:
    """Return the launch of quantize and dequantize for buckets of at most MAX_BUCKET values (a power of two).

    4096 values a program, 32 a thread: eight 16-byte loads in flight.
    """
    return BucketLaunch(max(1, 4096 // bucket), 4, 1024, 32)


def sum_codes(bucket: int) -> BucketLaunch:
    """Return the launch of aggregate_codes: a large bucket takes more threads, for the sake of registers."""
    return quantize(bucket)._replace(num_warps=4 if bucket <= 1024 else 8)


class SparseSumLaunch(NamedTuple):
    """A program of aggregate_sparse owns `range` outputs and adds `lanes` entries at a time."""

    range: int
    lanes: int
    search_lanes: int


SPARSE_SUM = SparseSumLaunch(8192, 256, 128)


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n` (and at least 1)."""
    return 1 << max(0, n - 1).bit_length()
