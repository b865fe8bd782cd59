"""Ascending indices to few bits and back: `encode_indices`, `decode_indices` (Elias-Fano).

k indices below n take k·l bits of low parts, l = max(0, ⌊log₂(n/k)⌋), and k + ⌊(n−1)/2^l⌋ bits of high parts, each in
whole 32-bit words: about k·(2 + log₂(n/k)), where the entropy of a random set is about k·(1.44 + log₂(n/k)).
kernels/reference/index_coding.py is the definition of the words; all backends give the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..kernels.reference import index_coding as reference
from . import backend
from .arguments import check_apart, check_output, check_outputs, check_rows
from .extension import launch, loaded
from .library import nothing, register
from .topk_arguments import MAX_ELEMENTS, check_count

# ---- public functions ----


class DecodedIndices(NamedTuple):
    """What `decode_indices` returns for rows of words [C, W]."""

    indices: Tensor  # int32 [C, k], ascending and below n
    valid: Tensor  # bool [C]


def encode_indices(indices: Tensor, *, n: int, out: Tensor | None = None) -> Tensor:
    """Return the index streams of rows of indices: int32 [C, W], the bit patterns of little-endian uint32 words.

    indices: int32 [C, k], strictly ascending, each 0 to n − 1: trusted here, for they come from `topk` (others give
    words that do not decode, never an access out of range). n: length of the row they point into, k to 2³¹ − 1.
    W = index_words(n, k). out: contiguous int32 [C, W] that does not overlap `indices`.
    Raises ArgumentError for a wrong shape, dtype, device or value.
    """
    check_rows("indices", indices, (torch.int32,))
    rows, k = indices.shape
    check_count("n", n, 0, MAX_ELEMENTS)
    check_count("k (the columns of indices)", k, 0, n)
    indices = indices.contiguous()
    if out is None:
        return _encode(indices, n)
    check_output("out", out, (rows, index_words(n, k)), torch.int32, indices.device)
    _encode_out(indices, n, out)
    return out


def decode_indices(words: Tensor, *, n: int, k: int, out: DecodedIndices | None = None) -> DecodedIndices:
    """Return the indices of each row's stream and whether the stream is legal.

    words: int32 [C, index_words(n, k)], of any content. A row is valid if and only if it is, to the bit, the encoding
    of k strictly ascending indices below n; the indices of an invalid row are 0..k−1. n: up to 2³¹ − 1. k: 0 to n.
    out: contiguous tensors as in `DecodedIndices` that overlap neither `words` nor each other.
    Raises ArgumentError for a wrong shape, dtype, device or value; never for the words.
    """
    check_rows("words", words, (torch.int32,))
    check_count("n", n, 0, MAX_ELEMENTS)
    check_count("k", k, 0, n)
    if words.shape[1] != index_words(n, k):
        expected = (words.shape[0], index_words(n, k))
        raise ArgumentError(f"words has shape {tuple(words.shape)}; expected {expected} for k = {k} of n = {n}")
    words = words.contiguous()
    if out is None:
        return DecodedIndices(*_decode(words, n, k))
    check_outputs(DecodedIndices._fields, out, _layout(words, k), words.device)
    _decode_out(words, n, *out)
    return DecodedIndices(*out)


def index_words(n: int, k: int) -> int:
    """Return the number of 32-bit words that k indices below n take."""
    return reference.index_words(n, k)


# ---- backends: contiguous tensors of checked shapes ----


def _encode_into(indices: Tensor, n: int, out: Tensor) -> None:
    check_apart({"out": out}, {"indices": [indices]})
    chosen = backend.choose("encode_indices", indices.device)
    arguments = indices.data_ptr(), *indices.shape, n, out.data_ptr()
    if chosen == "cpu":
        loaded().encode_indices_cpu(*arguments, torch.get_num_threads())
    elif chosen == "cuda":
        launch("encode_indices", indices, *arguments)
    elif chosen == "triton":
        with torch.cuda.device_of(indices):
            _triton().encode_into(indices, n, out)
    else:
        out.copy_(reference.encode_indices(indices, n))


def _decode_into(words: Tensor, n: int, indices: Tensor, valid: Tensor) -> None:
    check_apart({"out.indices": indices, "out.valid": valid}, {"words": [words]})
    chosen = backend.choose("decode_indices", words.device)
    rows, k = indices.shape
    source, outputs = (words.data_ptr(), rows, n, k), (indices.data_ptr(), valid.data_ptr())
    if chosen == "cpu":
        loaded().decode_indices_cpu(*source, *outputs, torch.get_num_threads())
    elif chosen == "cuda":
        # Held until the launch; afterwards PyTorch's allocator keeps it until the stream is past it.
        counts = torch.empty(rows * loaded().decode_indices_cuda_counts(n, k), dtype=torch.int32, device=words.device)
        launch("decode_indices", words, *source, counts.data_ptr(), *outputs)
    elif chosen == "triton":
        with torch.cuda.device_of(words):
            _triton().decode_into(words, n, indices, valid)
    else:
        for result, output in zip(reference.decode_indices(words, n, k), (indices, valid), strict=True):
            output.copy_(result)


def _triton() -> ModuleType:
    from ..kernels.triton import index_coding  # only here: the package works without Triton

    return index_coding


# ---- operators ----


def _layout(words: Tensor, k: int) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shapes and dtypes of the outputs, in the order of `DecodedIndices`."""
    return ((words.shape[0], k), torch.int32), ((words.shape[0],), torch.bool)


def _encode_empty(indices: Tensor, n: int) -> Tensor:
    rows, k = indices.shape
    return indices.new_empty((rows, index_words(n, k)))


def _encode_new(indices: Tensor, n: int) -> Tensor:
    out = _encode_empty(indices, n)
    _encode_into(indices, n, out)
    return out


def _decode_empty(words: Tensor, n: int, k: int) -> tuple[Tensor, ...]:
    return tuple(words.new_empty(shape, dtype=dtype) for shape, dtype in _layout(words, k))


def _decode_new(words: Tensor, n: int, k: int) -> tuple[Tensor, ...]:
    outputs = _decode_empty(words, n, k)
    _decode_into(words, n, *outputs)
    return outputs


# n and k are int, not SymInt: the length of a stream has a logarithm in it, which a traced shape cannot express.
_encode = register("encode_indices(Tensor indices, int n) -> Tensor", _encode_new, _encode_empty)
_encode_out = register("encode_indices_out(Tensor indices, int n, Tensor(a!) out) -> ()", _encode_into, nothing)
_decode = register("decode_indices(Tensor words, int n, int k) -> (Tensor, Tensor)", _decode_new, _decode_empty)
_decode_out = register(
    "decode_indices_out(Tensor words, int n, Tensor(a!) indices, Tensor(b!) valid) -> ()", _decode_into, nothing
)
