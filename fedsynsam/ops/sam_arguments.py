"""What `sam_norm`, `sam_perturb` and `sam_step` accept: one typed error per wrong argument, before any launch."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from ..errors import ArgumentError
from .arguments import DTYPES, check_is_tensor, check_rows, check_written

FLOAT32 = (torch.float32,)


def check_weights(weights: Tensor) -> None:
    check_rows("weights", weights, FLOAT32)


def check_like(name: str, tensor: Tensor, weights: Tensor, dtypes: Collection[torch.dtype] = FLOAT32) -> None:
    check_is_tensor(name, tensor)
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
    if beta is None or isinstance(beta, str) or not math.isfinite(beta):
        raise ArgumentError(f"beta is {beta!r}; expected a finite number, 0 for the gradient, 1 for synthetic alone")
    if synthetic is None:
        if beta != 1.0:
            raise ArgumentError(f"beta is {beta} but synthetic was not given; pass synthetic or leave beta out")
        return
    check_like("synthetic", synthetic, weights, DTYPES)
    if synthetic.dtype != gradient.dtype:
        raise ArgumentError(f"synthetic has dtype {synthetic.dtype}; expected {gradient.dtype}, like gradient")


def check_perturb(
    weights: Tensor,
    gradient: Tensor,
    synthetic: Tensor | None,
    norm: Tensor | None,
    rho: float,
    beta: float,
    out: Tensor | None,
) -> None:
    check_direction(weights, gradient, synthetic, beta)
    check_finite(rho=rho)
    if norm is not None:
        check_norm("norm", norm, weights)
    if out is not None:
        check_like("out", out, weights)
        check_written("out", out)


def check_step(
    weights: Tensor,
    gradient: Tensor,
    correction: Tensor | None,
    momentum_buffer: Tensor | None,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    check_weights(weights)
    check_written("weights", weights)
    check_like("gradient", gradient, weights, DTYPES)
    check_finite(lr=lr, weight_decay=weight_decay, momentum=momentum)
    if correction is not None:
        check_like("correction", correction, weights)
    check_momentum(momentum, momentum_buffer, weights)


def check_finite(**values: float) -> None:
    for name, value in values.items():
        if value is None or isinstance(value, str) or not math.isfinite(value):
            raise ArgumentError(f"{name} is {value!r}; expected a finite number")


def check_momentum(momentum: float, momentum_buffer: Tensor | None, weights: Tensor) -> None:
    if (momentum_buffer is None) != (momentum == 0):
        given = "was not given" if momentum_buffer is None else "was given"
        raise ArgumentError(f"momentum is {momentum} but momentum_buffer {given}; pass both or neither")
    if momentum_buffer is not None:
        check_like("momentum_buffer", momentum_buffer, weights)
        check_written("momentum_buffer", momentum_buffer)
