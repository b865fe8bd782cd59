"""Judgement of the tensors of a payload that has arrived: each function returns what is wrong, or nothing.

What passes here is legal: finite, in range and in the one form that the encoder would have written.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .plan import Plan

# The quantizer's zero bucket: scales below 2^-120 are never sent (the bits of 2^-120 and of the largest float32).
_SMALLEST_SCALE = (127 - 120) << 23
_LARGEST_SCALE = 0x7F7FFFFF


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
    position = int((~torch.isfinite(values)).nonzero()[0])
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


def fault_of_codes(codes: bytes | bytearray, bits: int) -> str:
    """Say which byte of the codes holds the pattern that no code may have."""
    if not codes.translate(None, _LEGAL[bits]):
        return ""
    legal = np.isin(np.frombuffer(codes, np.uint8), np.frombuffer(_LEGAL[bits], np.uint8))
    position = int(legal.argmin())
    return f"codes: byte {position} is {codes[position]:#04x}; it holds the illegal code {-(1 << (bits - 1))}"


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
    places = np.arange(indices.numel()) // max(share, 1)
    # Every full chunk holds `share`; the tail's indices follow, whatever their number.
    places = np.minimum(places, n // plan.chunk)
    wrong = indices.numpy() // plan.chunk != places
    if not wrong.any():
        return ""
    position = int(wrong.argmax())
    return f"indices: entry {position} is {int(indices[position])}, outside chunk {places[position]} that it belongs to"


def fault_of_index_words(words: np.ndarray, n: int, k: int) -> str:
    """Say what is wrong with an Elias–Fano stream that was refused (slow; only for the error message)."""
    low_bits = max(0, (n // k).bit_length() - 1)
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    low, high = np.split(bits, [-(-k * low_bits // 32) * 32])
    high_length = k + ((n - 1) >> low_bits)
    if low[k * low_bits :].any() or high[high_length:].any():
        return "indices: padding bits are not 0"
    ones = np.flatnonzero(high[:high_length])
    if len(ones) != k:
        return f"indices: the high bits mark {len(ones)} indices, {k} expected"
    indices = (ones - np.arange(k)) << low_bits
    for bit in range(low_bits):
        indices += low[bit : k * low_bits : low_bits].astype(np.int64) << bit
    if (indices >= n).any():
        return f"indices: {int(indices.max())} is out of range for {n} elements"
    falls = np.flatnonzero(np.diff(indices) <= 0)
    if len(falls):
        return f"indices: not ascending at entry {int(falls[0]) + 1}"
    return "indices: not a canonical Elias-Fano stream"
