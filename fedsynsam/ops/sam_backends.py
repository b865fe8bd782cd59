"""Runs `sam_norm`, `sam_perturb` and `sam_step` on the chosen backend, into outputs that exist already.

Tensors are contiguous and of checked shapes (see sam.py); what only real tensors can show is checked here.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..kernels.reference import sam as reference
from . import backend
from .arguments import DTYPES, check_apart
from .extension import address, launch, loaded


def norm_into(
    weights: Tensor, gradient: Tensor, synthetic: Tensor | None, beta: float, adaptive: bool, out: Tensor
) -> None:
    check_apart({"out": out}, {"weights": [weights], "gradient": [gradient], "synthetic": [synthetic]})
    chosen = backend.choose("sam_norm", weights.device)
    source = (weights.data_ptr(), *_direction(gradient, synthetic, beta, adaptive), *weights.shape)
    if chosen == "cpu":
        loaded().sam_norm_cpu(*source, out.data_ptr(), torch.get_num_threads())
    elif chosen == "cuda":
        partials = _partials(weights)  # held until the launch: another thread must not be given its memory before
        launch("sam_norm", weights, *source, partials.data_ptr(), out.data_ptr())
    elif chosen == "triton":
        with torch.cuda.device_of(weights):
            _triton().norm_into(weights, gradient, synthetic, beta, adaptive, out)
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
    read = {"weights": weights, "gradient": gradient, "synthetic": synthetic, "norm": norm}
    check_apart({"out": out}, {name: [tensor] for name, tensor in read.items()})
    chosen = backend.choose("sam_perturb", weights.device)
    source = (weights.data_ptr(), *_direction(gradient, synthetic, beta, adaptive), *weights.shape, rho, address(norm))
    if chosen == "cpu":
        loaded().sam_perturb_cpu(*source, out.data_ptr(), torch.get_num_threads())
    elif chosen == "cuda":
        partials = _partials(weights) if norm is None else None
        launch("sam_perturb", weights, *source, address(partials), out.data_ptr())
    elif chosen == "triton":
        with torch.cuda.device_of(weights):
            _triton().perturb_into(weights, gradient, synthetic, norm, rho, beta, adaptive, out)
    else:
        options = {"rho": rho, "beta": beta, "adaptive": adaptive}
        out.copy_(reference.sam_perturb(weights, gradient, synthetic, norm=norm, **options))


def step_into(
    weights: Tensor,
    gradient: Tensor,
    correction: Tensor | None,
    momentum_buffer: Tensor | None,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    written = (
        {"weights": weights} if momentum_buffer is None else {"weights": weights, "momentum_buffer": momentum_buffer}
    )
    check_apart(written, {"gradient": [gradient], "correction": [correction]})
    chosen = backend.choose("sam_step", weights.device)
    rates = (lr, weight_decay, momentum)
    tensors = (weights.data_ptr(), gradient.data_ptr(), DTYPES[gradient.dtype])
    optional = (address(correction), address(momentum_buffer))
    if chosen == "cpu":
        loaded().sam_step_cpu(*tensors, *optional, *rates, *weights.shape, torch.get_num_threads())
    elif chosen == "cuda":
        launch("sam_step", weights, *tensors, *optional, *rates, *weights.shape)
    elif chosen == "triton":
        with torch.cuda.device_of(weights):
            _triton().step_into(weights, gradient, correction, momentum_buffer, *rates)
    else:
        _step_reference(weights, gradient, correction, momentum_buffer, *rates)


def _step_reference(
    weights: Tensor,
    gradient: Tensor,
    correction: Tensor | None,
    momentum_buffer: Tensor | None,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    stepped, buffer = reference.sam_step(
        weights, gradient, correction, momentum_buffer, lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    weights.copy_(stepped)
    if momentum_buffer is not None and buffer is not None:
        momentum_buffer.copy_(buffer)


def _triton() -> ModuleType:
    from ..kernels.triton import sam  # only here: the package works without Triton

    return sam


def _partials(weights: Tensor) -> Tensor:
    """Scratch for the two-level norm. After a launch, PyTorch's allocator keeps it until the stream is past it."""
    rows, n = weights.shape
    return torch.empty(rows * loaded().sam_cuda_partials(n), dtype=torch.float64, device=weights.device)


def _direction(
    gradient: Tensor, synthetic: Tensor | None, beta: float, adaptive: bool
) -> tuple[int, int, int, float, bool]:
    return gradient.data_ptr(), address(synthetic), DTYPES[gradient.dtype], beta, adaptive
