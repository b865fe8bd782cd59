"""What `topk`, `chunk_topk` and the index coding accept: one typed error per wrong argument, before any launch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the numbers of fedsynsam::Dtype
MAX_ELEMENTS = 2**31 - 1  # of a row: indices are int32


def check_rows(name: str, tensor: Any, dtypes: Collection[torch.dtype]) -> None:
    """Check that `tensor` is a tensor [C, n] of one of `dtypes`."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} is a {type(tensor).__name__}; expected a tensor")
    if tensor.dim() != 2:
        shape = tuple(tensor.shape)
        raise ArgumentError(f"{name} has shape {shape}; expected two dimensions (for one row: tensor.view(1, -1))")
    if tensor.dtype not in dtypes:
        raise ArgumentError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(map(str, dtypes))}")


def check_tensor(name: str, tensor: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Check type, dtype, shape and device of one tensor; `shape`, `dtype` and `device` are what is right."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} is a {type(tensor).__name__}; expected a tensor")
    if tensor.dtype != dtype:
        raise ArgumentError(f"{name} has dtype {tensor.dtype}; expected {dtype}")
    if tuple(tensor.shape) != tuple(shape):
        raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}")
    if tensor.device != device:
        raise ArgumentError(f"{name} is on {tensor.device}; expected {device}, like the other tensors")


def check_outputs(names: Sequence[str], outputs: Any, layout: Sequence[Any], device: torch.device) -> None:
    """Check the tensors of `out=` against `layout`, a (shape, dtype) for each."""
    if not isinstance(outputs, tuple) or len(outputs) != len(names):
        raise ArgumentError(f"out is a {type(outputs).__name__}; expected a tuple of {', '.join(names)}")
    for name, tensor, (shape, dtype) in zip(names, outputs, layout, strict=True):
        check_output(f"out.{name}", tensor, shape, dtype, device)


def check_output(name: str, tensor: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Check a tensor that is written: as `check_tensor`, and contiguous."""
    check_tensor(name, tensor, shape, dtype, device)
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} is not contiguous (strides {tensor.stride()}); it is written, so it must be")


def check_apart(outputs: dict[str, Tensor], inputs: dict[str, Tensor | None]) -> None:
    """Refuse outputs that share memory with an input or with each other. Needs real, contiguous tensors."""
    others = {name: _memory(tensor) for name, tensor in inputs.items() if tensor is not None}
    for name, tensor in outputs.items():
        begin, end = _memory(tensor)
        for other, (start, stop) in others.items():
            if max(begin, start) < min(end, stop):
                raise ArgumentError(f"{name} overlaps {other} in memory; pass a tensor of its own")
        others[name] = begin, end


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def check_update(update: Any, residual: Any) -> None:
    """Check the inputs that both forms of top-k share."""
    check_rows("update", update, DTYPES)
    if update.shape[1] > MAX_ELEMENTS:
        raise ArgumentError(f"update has rows of {update.shape[1]} elements; expected at most {MAX_ELEMENTS}")
    if residual is not None:
        check_tensor("residual", residual, update.shape, torch.float32, update.device)


def check_count(name: str, value: Any, low: int, high: int) -> None:
    """Check that `value` is an integer in [low, high]."""
    # torch.SymInt is no int, but a length that torch.compile traces.
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ArgumentError(f"{name} is {value!r}; expected an integer")
    if not low <= value <= high:
        raise ArgumentError(f"{name} is {value}; expected {low} to {high}")


def check_density(density: Any) -> None:
    """Check that `density` is a number in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ArgumentError(f"density is {density!r}; expected a number above 0 and at most 1")
