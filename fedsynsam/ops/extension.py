"""The compiled extension as the operations call it: CPU functions, and CUDA launches on the caller's stream."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError
from . import backend


def loaded() -> ModuleType:
    """Return the extension; raise BackendError if it is not usable here."""
    if backend.extension is None:
        raise BackendError(f"backend 'cpu' cannot be used here: {backend.why_not('cpu')}")
    return backend.extension


def launch(op: str, tensor: Tensor, *arguments: Any) -> None:
    """Launch the CUDA function `op`_cuda on the current stream of `tensor`'s device; raise BackendError if it fails."""
    with torch.cuda.device_of(tensor):
        code = getattr(loaded(), f"{op}_cuda")(*arguments, current_stream(tensor))
    if code != 0:
        raise BackendError(
            f"backend 'cuda' could not launch {op} on {tuple(tensor.shape)}: {loaded().cuda_error(code)}"
        )


def current_stream(tensor: Tensor) -> int:
    """Return the handle of the stream that PyTorch would use for `tensor` now."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


def address(tensor: Tensor | None) -> int:
    """Return the address of a tensor's first element, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
