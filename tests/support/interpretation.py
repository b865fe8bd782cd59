"""Runs the Triton kernels on the CPU, in Triton's interpreter (needs TRITON_INTERPRET=1 from the start)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from fedsynsam.ops import backend


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run every operation on CPU tensors inside the block by the interpreted Triton kernels."""
    with mock.patch.object(backend, "choose", return_value="triton"):
        yield
