"""Runs `sam_norm`, `sam_perturb` and `sam_step` on the chosen backend, into outputs that exist already.

Tensors are contiguous and of checked shapes (see sam.py); what only real tensors can show is checked here.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..errors import BackendError
from ..kernels.reference import sam as reference
from . import backend
from .sam_arguments import DTYPES, check_apart


def norm_into(
    weights: Tensor, gradient: Tensor, synthetic: Tensor | None, beta: float, adaptive: bool, out: Tensor
) -> None:
    check_apart("out", out, weights=weights, gradient=gradient, synthetic=synthetic)
    if backend.choose("sam_norm", weights.device) == "cpu":
        source = _direction(gradient, synthetic, beta, adaptive)
        threads = torch.get_num_threads()
        _extension().sam_norm_cpu(weights.data_ptr(), *source, *weights.shape, out.data_ptr(), threads)
    else:
        out.copy_(reference.sam_norm(weights, gradient, synthetic, beta=beta, adaptive=adaptive))


def perturb_into(
    weights: Tensor,
    gradient: Tensor,
    synthetic: Tensor | None,
    norm: Tensor | None,
    rho: float,
    beta: float,
    adaptive: bool,
    out: Tensor,
) -> None:
    check_apart("out", out, weights=weights, gradient=gradient, synthetic=synthetic, norm=norm)
    if backend.choose("sam_perturb", weights.device) == "cpu":
        source = _direction(gradient, synthetic, beta, adaptive)
        target = (rho, _address(norm), out.data_ptr())
        _extension().sam_perturb_cpu(weights.data_ptr(), *source, *weights.shape, *target, torch.get_num_threads())
    else:
        out.copy_(reference.sam_perturb(weights, gradient, synthetic, rho=rho, beta=beta, adaptive=adaptive, norm=norm))


def step_into(
    weights: Tensor,
    gradient: Tensor,
    correction: Tensor | None,
    momentum_buffer: Tensor | None,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    check_apart("weights", weights, gradient=gradient, correction=correction, momentum_buffer=momentum_buffer)
    if momentum_buffer is not None:
        check_apart("momentum_buffer", momentum_buffer, gradient=gradient, correction=correction)
    rates = (lr, weight_decay, momentum)
    if backend.choose("sam_step", weights.device) == "cpu":
        source = (gradient.data_ptr(), DTYPES[gradient.dtype], _address(correction), _address(momentum_buffer))
        _extension().sam_step_cpu(weights.data_ptr(), *source, *rates, *weights.shape, torch.get_num_threads())
        return
    stepped, buffer = reference.sam_step(
        weights, gradient, correction, momentum_buffer, lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    weights.copy_(stepped)
    if momentum_buffer is not None and buffer is not None:
        momentum_buffer.copy_(buffer)


def _extension() -> ModuleType:
    if backend.extension is None:
        raise BackendError(f"backend 'cpu' cannot be used here: {backend.why_not('cpu')}")
    return backend.extension


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _direction(
    gradient: Tensor, synthetic: Tensor | None, beta: float, adaptive: bool
) -> tuple[int, int, int, float, bool]:
    return gradient.data_ptr(), _address(synthetic), DTYPES[gradient.dtype], beta, adaptive
