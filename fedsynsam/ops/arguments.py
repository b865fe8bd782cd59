"""Checks that every operation shares: one typed error per wrong argument, before any launch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the numbers of fedsynsam::Dtype


def check_is_tensor(name: str, tensor: Any) -> None:
    """Check that `tensor` is one."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} is a {type(tensor).__name__}; expected a tensor")


def check_rows(name: str, tensor: Any, dtypes: Collection[torch.dtype]) -> None:
    """Check that `tensor` is a tensor [C, n] of one of `dtypes`."""
    check_is_tensor(name, tensor)
    if tensor.dim() != 2:
        shape = tuple(tensor.shape)
        raise ArgumentError(f"{name} has shape {shape}; expected two dimensions (for one row: tensor.view(1, -1))")
    if tensor.dtype not in dtypes:
        raise ArgumentError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(map(str, dtypes))}")


def check_tensor(name: str, tensor: Any, shape: Sequence[int], dtypes: Collection[torch.dtype], device: Any) -> None:
    """Check type, dtype, shape and device of one tensor; `shape`, `dtypes` and `device` are what is right."""
    check_is_tensor(name, tensor)
    if tensor.dtype not in dtypes:
        raise ArgumentError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(map(str, dtypes))}")
    if tuple(tensor.shape) != tuple(shape):
        raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}")
    if tensor.device != device:
        raise ArgumentError(f"{name} is on {tensor.device}; expected {device}, like the other tensors")


def check_contiguous(name: str, tensor: Tensor) -> None:
    """Check that a tensor lies in memory without gaps, in the order of its elements."""
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} is not contiguous (strides {tensor.stride()}); pass {name}.contiguous()")


def check_written(name: str, tensor: Tensor) -> None:
    """Check that a tensor that is written is contiguous."""
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} is not contiguous (strides {tensor.stride()}); it is written, so it must be")


def check_outputs(names: Sequence[str], outputs: Any, layout: Sequence[Any], device: torch.device) -> None:
    """Check the tensors of `out=` against `layout`, a (shape, dtype) for each."""
    if not isinstance(outputs, tuple) or len(outputs) != len(names):
        raise ArgumentError(f"out is a {type(outputs).__name__}; expected a tuple of {', '.join(names)}")
    for name, tensor, (shape, dtype) in zip(names, outputs, layout, strict=True):
        check_output(f"out.{name}", tensor, shape, dtype, device)


def check_output(name: str, tensor: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Check a tensor that is written: as `check_tensor`, and contiguous."""
    check_tensor(name, tensor, shape, (dtype,), device)
    check_written(name, tensor)


def check_apart(outputs: Mapping[str, Tensor], inputs: Mapping[str, Sequence[Tensor | None]]) -> None:
    """Refuse outputs that share memory with an input or with each other. Needs real, contiguous tensors."""
    taken = [(name, *_memory(t)) for name, tensors in inputs.items() for t in tensors if t is not None]
    for name, tensor in outputs.items():
        begin, end = _memory(tensor)
        for other, start, stop in taken:
            if max(begin, start) < min(end, stop):
                raise ArgumentError(f"{name} overlaps {other} in memory; pass a tensor of its own")
        taken.append((name, begin, end))


def _memory(tensor: Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    return begin, begin + tensor.nbytes
