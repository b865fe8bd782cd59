"""Typed errors of encode_indices and decode_indices, and their operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsynsam import ops
from fedsynsam.errors import ArgumentError
from fedsynsam.ops import DecodedIndices

INDICES = torch.tensor([[1, 4, 9]], dtype=torch.int32)
WORDS = ops.encode_indices(INDICES, n=10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.encode_indices(INDICES.long(), n=10), "indices has dtype torch.int64"),
        (lambda: ops.encode_indices(INDICES[0], n=10), "two dimensions"),
        (lambda: ops.encode_indices([[1]], n=10), "indices is a list"),
        (lambda: ops.encode_indices(INDICES, n=2), r"k \(the columns of indices\) is 3; expected 0 to 2"),
        (lambda: ops.encode_indices(INDICES, n=-1), "n is -1"),
        (lambda: ops.encode_indices(INDICES, n=2**31), "n is 2147483648"),
        (lambda: ops.encode_indices(INDICES, n=10.0), "n is 10.0; expected an integer"),
        (lambda: ops.encode_indices(INDICES, n=10, out=WORDS[:, :0]), "out has shape"),
        (lambda: ops.encode_indices(INDICES, n=10, out=WORDS.float()), "out has dtype"),
        (lambda: ops.encode_indices(INDICES, n=10, out=WORDS.to("meta")), "out is on meta"),
        (lambda: ops.encode_indices(INDICES[:, :1], n=10, out=INDICES[:, :1]), "out has shape|out overlaps indices"),
        (lambda: ops.decode_indices(WORDS, n=10, k=11), "k is 11; expected 0 to 10"),
        (lambda: ops.decode_indices(WORDS, n=10, k=-1), "k is -1"),
        (lambda: ops.decode_indices(WORDS, n=10, k=True), "k is True"),
        (lambda: ops.decode_indices(WORDS, n=1000, k=500), "words has shape"),
        (lambda: ops.decode_indices(WORDS.float(), n=10, k=3), "words has dtype"),
        (lambda: ops.decode_indices(WORDS, n=10, k=3, out=INDICES), "expected a tuple of indices, valid"),
        (
            lambda: ops.decode_indices(WORDS, n=10, k=3, out=DecodedIndices(INDICES, INDICES)),
            "out.valid has dtype",
        ),
    ],
)
def test_wrong_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_overlapping_out_is_refused() -> None:
    buffer = torch.arange(64, dtype=torch.int32)
    indices = buffer[:20].view(2, 10)
    width = ops.index_words(64, 10)
    out = buffer[15 : 15 + 2 * width].view(2, width)
    with pytest.raises(ArgumentError, match="out overlaps indices"):
        ops.encode_indices(indices, n=64, out=out)
    with pytest.raises(ArgumentError, match=r"out\.indices overlaps words"):
        ops.decode_indices(out, n=64, k=10, out=DecodedIndices(indices, torch.zeros(2, dtype=torch.bool)))
    strided = torch.zeros(2, 2 * width, dtype=torch.int32)[:, ::2]
    with pytest.raises(ArgumentError, match="out is not contiguous"):
        ops.encode_indices(indices, n=64, out=strided)


def test_operators_pass_opcheck() -> None:
    for rows, n, k in [(2, 100, 10), (1, 10, 10), (2, 10, 0)]:
        indices = torch.arange(k, dtype=torch.int32).expand(rows, k).contiguous()
        words = ops.encode_indices(indices, n=n)
        namespace = torch.ops.fedsynsam
        torch.library.opcheck(namespace.encode_indices.default, (indices, n))
        torch.library.opcheck(namespace.encode_indices_out.default, (indices, n, torch.empty_like(words)))
        torch.library.opcheck(namespace.decode_indices.default, (words, n, k))
        outputs = torch.empty_like(indices), torch.empty(rows, dtype=torch.bool)
        torch.library.opcheck(namespace.decode_indices_out.default, (words, n, *outputs))
