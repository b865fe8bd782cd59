"""What `sam_norm`, `sam_perturb` and `sam_step` accept: one typed error per wrong argument, before any launch."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from ..errors import ArgumentError

FLOAT32 = (torch.float32,)
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the numbers of fedsynsam::Dtype


def check_weights(weights: Tensor) -> None:
    if not isinstance(weights, Tensor):
        raise ArgumentError(f"weights is a {type(weights).__name__}; expected a float32 tensor [rows, n]")
    if weights.dim() != 2:
        shape = tuple(weights.shape)
        raise ArgumentError(f"weights has shape {shape}; expected [rows, n] (a single row: tensor.view(1, -1))")
    if weights.dtype != torch.float32:
        raise ArgumentError(f"weights has dtype {weights.dtype}; expected torch.float32")


def check_like(name: str, tensor: Tensor, weights: Tensor, dtypes: Collection[torch.dtype] = FLOAT32) -> None:
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} is a {type(tensor).__name__}; expected a tensor")
    if tensor.shape != weights.shape:
        raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(weights.shape)}, like weights")
    if tensor.dtype not in dtypes:
        raise ArgumentError(f"{name} has dtype {tensor.dtype}; expected {', '.join(map(str, dtypes))}")
    if tensor.device != weights.device:
        raise ArgumentError(f"{name} is on {tensor.device}; expected {weights.device}, like weights")


def check_norm(name: str, norm: Tensor, weights: Tensor) -> None:
    if not isinstance(norm, Tensor) or norm.dtype != torch.float32 or norm.shape != weights.shape[:1]:
        found = f"{norm.dtype} {tuple(norm.shape)}" if isinstance(norm, Tensor) else type(norm).__name__
        raise ArgumentError(f"{name} is {found}; expected float32 ({weights.shape[0]},), one value per row of weights")
    if norm.device != weights.device:
        raise ArgumentError(f"{name} is on {norm.device}; expected {weights.device}, like weights")


def check_direction(weights: Tensor, gradient: Tensor, synthetic: Tensor | None, beta: float) -> None:
    check_weights(weights)
    check_like("gradient", gradient, weights, DTYPES)
    if not math.isfinite(beta):
        raise ArgumentError(f"beta is {beta}; expected a finite number, 0 for the gradient, 1 for synthetic alone")
    if synthetic is None:
        if beta != 1.0:
            raise ArgumentError(f"beta is {beta} but synthetic was not given; pass synthetic or leave beta out")
        return
    check_like("synthetic", synthetic, weights, DTYPES)
    if synthetic.dtype != gradient.dtype:
        raise ArgumentError(f"synthetic has dtype {synthetic.dtype}; expected {gradient.dtype}, like gradient")


def check_finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ArgumentError(f"{name} is {value}; expected a finite number")


def check_written(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} is not contiguous (strides {tensor.stride()}); it is written, so it must be")


def check_apart(name: str, written: Tensor, **inputs: Tensor | None) -> None:
    """Refuse an input that shares memory with `written` (both contiguous). Needs real tensors: not under tracing."""
    begin = written.data_ptr()
    end = begin + written.numel() * written.element_size()
    for other, tensor in inputs.items():
        if tensor is None:
            continue
        start = tensor.data_ptr()
        if start < end and begin < start + tensor.numel() * tensor.element_size():
            raise ArgumentError(f"{name} overlaps {other} in memory; pass a tensor of its own")


def check_momentum(momentum: float, momentum_buffer: Tensor | None, weights: Tensor) -> None:
    if (momentum_buffer is None) != (momentum == 0):
        given = "was not given" if momentum_buffer is None else "was given"
        raise ArgumentError(f"momentum is {momentum} but momentum_buffer {given}; pass both or neither")
    if momentum_buffer is not None:
        check_like("momentum_buffer", momentum_buffer, weights)
        check_written("momentum_buffer", momentum_buffer)
