"""Judgement of the tensors of a payload that has arrived: each function returns what is wrong, or nothing.

What passes here is legal: finite, in range and in the one form that the encoder would have written. Temporaries are of
one block, so that judging a payload takes no memory worth counting beside the payload.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .plan import Plan

# The quantizer's zero bucket: scales below 2^-120 are never sent (the bits of 2^-120 and of the largest float32).
_SMALLEST_SCALE = (127 - 120) << 23
_LARGEST_SCALE = 0x7F7FFFFF
_BLOCK = 1 << 18  # entries judged at a time


def _illegal_bytes(bits: int) -> bytes:
    """Return the bytes that hold the pattern -2^(bits-1), which no code may have (one bit has none)."""
    if bits == 1:
        return b""
    mask, illegal = (1 << bits) - 1, 1 << (bits - 1)
    return bytes(v for v in range(256) if any((v >> shift) & mask == illegal for shift in range(0, 8, bits)))


_LEGAL = {bits: bytes(sorted(set(range(256)) - set(_illegal_bytes(bits)))) for bits in (1, 2, 4, 8)}


def fault_of_values(values: Tensor) -> str:
    """Say what is wrong with float32 values: any NaN or infinity."""
    if values.numel() == 0:
        return ""
    lowest, highest = torch.aminmax(values)  # NaN wins over every number; no temporary of the tensor's size
    if torch.isfinite(lowest) and torch.isfinite(highest):
        return ""
    position = next(
        block.start + int(wrong.argmax())
        for block in _blocks(values.numel())
        if (wrong := ~np.isfinite(values.numpy()[block])).any()
    )
    return f"values: entry {position} is {values[position].item()}; all must be finite"


def fault_of_scales(scales: Tensor) -> str:
    """Say what is wrong with scales: each is +0 or a finite number of at least 2^-120."""
    patterns = scales.numpy().view(np.int32)
    wrong = (patterns != 0) & ((patterns < _SMALLEST_SCALE) | (patterns > _LARGEST_SCALE))
    if not wrong.any():
        return ""
    position = int(wrong.argmax())
    value = float(scales[position])
    return f"scales: bucket {position} has the scale {value}; it must be finite, not negative, and 0 or at least 2^-120"


def fault_of_codes(codes: memoryview, bits: int) -> str:
    """Say which byte of the codes holds the pattern that no code may have."""
    for block in _blocks(len(codes)):
        some = bytes(codes[block])
        if illegal := some.translate(None, _LEGAL[bits]):
            position = block.start + some.index(illegal[:1])
            return f"codes: byte {position} is {codes[position]:#04x}; it holds the illegal code {-(1 << (bits - 1))}"
    return ""


def fault_of_empty_codes(codes: Tensor, scales: Tensor, plan: Plan, n: int) -> str:
    """Say where a code is not 0 though it lies behind the last value or in a bucket whose scale is 0.

    `codes` are the padded ones, [buckets · bucket_bytes].
    """
    if codes.numel() == 0:
        return ""
    by_bucket = codes.view(-1, plan.bucket_bytes)
    zero = scales == 0
    if zero.any() and (wrong := (by_bucket[zero] != 0).any(1)).any():
        bucket = int(zero.nonzero()[int(wrong.to(torch.uint8).argmax())])
        return f"codes: bucket {bucket} has the scale 0, but codes that are not 0"
    assert plan.bits is not None
    short = plan.count_sent(n) % plan.bucket
    last = by_bucket[-1].numpy()
    for place in range(8 // plan.bits) if short else ():
        behind = last[max(0, short - place * plan.bucket_bytes) :] >> (place * plan.bits)
        if (behind & ((1 << plan.bits) - 1)).any():
            return f"codes: padding behind the {short} values of the last bucket is not 0"
    return ""


def fault_of_chunks(indices: Tensor, plan: Plan, n: int) -> str:
    """Say which chunk of a chunked top-k does not hold exactly its share of the indices."""
    assert plan.chunk is not None
    share = Plan(density=plan.density).count_sent(plan.chunk)
    for block in _blocks(indices.numel()):
        found = indices.numpy()[block]
        places = np.arange(block.start, block.start + len(found)) // max(share, 1)
        # Every full chunk holds `share`; the tail's indices follow, whatever their number.
        places = np.minimum(places, n // plan.chunk)
        wrong = found // plan.chunk != places
        if wrong.any():
            first = int(wrong.argmax())
            return (f"indices: entry {block.start + first} is {found[first]}, "
                    f"outside chunk {places[first]} that it belongs to")  # fmt: skip
    return ""


def fault_of_index_words(words: np.ndarray, n: int, k: int) -> str:
    """Say what is wrong with an Elias–Fano stream that was refused (slow; only for the error message)."""
    low_bits = max(0, (n // k).bit_length() - 1)
    low, high = np.split(words, [-(-k * low_bits // 32)])
    high_length = k + ((n - 1) >> low_bits)
    if _bits(low, k * low_bits, 32 * len(low)).any() or _bits(high, high_length, 32 * len(high)).any():
        return "indices: padding bits are not 0"
    marked = sum(int(_bits(high, block.start, min(block.stop, high_length)).sum()) for block in _blocks(high_length))
    if marked != k:
        return f"indices: the high bits mark {marked} indices, {k} expected"
    done, last, highest, fall = 0, -1, 0, None
    for block in _blocks(high_length, _BLOCK // 32):  # each may hold as many indices, of up to 32 low bits
        ones = block.start + np.flatnonzero(_bits(high, block.start, min(block.stop, high_length)))
        if not len(ones):
            continue
        indices = (ones - np.arange(done, done + len(ones))) << low_bits
        parts = _bits(low, done * low_bits, (done + len(ones)) * low_bits)
        for bit in range(low_bits):
            indices += parts[bit::low_bits].astype(np.int64) << bit
        falls = np.flatnonzero(np.diff(indices, prepend=last) <= 0)
        if fall is None and len(falls):
            fall = done + int(falls[0])
        done, last, highest = done + len(ones), int(indices[-1]), max(highest, int(indices.max()))
    if highest >= n:
        return f"indices: {highest} is out of range for {n} elements"
    return "indices: not a canonical Elias-Fano stream" if fall is None else f"indices: not ascending at entry {fall}"


def _bits(words: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the bits from `start` to `stop` of 32-bit words, lowest first, as uint8."""
    some = words[start // 32 : -(-stop // 32)].astype("<u4").view(np.uint8)
    return np.unpackbits(some, bitorder="little")[start % 32 :][: stop - start]


def _blocks(count: int, size: int = _BLOCK) -> Iterator[slice]:
    """Cut `count` entries into slices of `size`; the last may reach behind them."""
    return (slice(start, start + size) for start in range(0, count, size))
