"""Sharpness-aware minimization, fused: `sam_norm`, `sam_perturb`, `sam_step`.

    d  = gradient,  or  beta * synthetic + (1 - beta) * gradient
    w' = w + (rho / ||d||) * d                          adaptive: w + (rho / ||w d||) * w * (w d)
    w <- w - lr * (g2 + weight_decay * w + correction)  with g2 the gradient at w'

SAM: Foret et al. 2021 (arXiv 2010.01412), equation 2. Adaptive: Kwon et al. 2021 (arXiv 2102.11600), with T_w = |w|.
`w` is never overwritten by `w'` (a second buffer holds it), so that restoring is exact and free.

Arithmetic is float32 with one rounding an operation; the elementwise results of all backends, given the same norm,
are equal bit for bit. Norms are summed in float64 (on the CPU over fixed blocks of 16384 elements, so that they do
not depend on the number of threads); between backends they differ by at most one unit in the last place of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arguments import check_written
from .library import nothing, register
from .sam_arguments import check_direction, check_norm, check_perturb, check_step
from .sam_backends import norm_into, perturb_into, step_into

# ---- public functions ----


def sam_norm(
    weights: Tensor,
    gradient: Tensor,
    *,
    synthetic: Tensor | None = None,
    beta: float = 1.0,
    adaptive: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Return the length of each row's direction: float32 [C].

    ‖d‖, or ‖w·d‖ if `adaptive`, with d = gradient, or β·synthetic + (1−β)·gradient.

    weights: float32 [C, n] (read only if `adaptive`). gradient: [C, n] float32, bfloat16 or float16. synthetic: like
    gradient. out: contiguous float32 [C]. A gradient with NaN or infinity gives a norm that is not finite.
    Raises ArgumentError for a wrong shape, dtype, device or value.
    """
    check_direction(weights, gradient, synthetic, beta)
    weights, gradient, synthetic = weights.contiguous(), gradient.contiguous(), _contiguous(synthetic)
    if out is None:
        return _norm(weights, gradient, synthetic, beta, adaptive)
    check_norm("out", out, weights)
    check_written("out", out)
    _norm_out(weights, gradient, synthetic, beta, adaptive, out)
    return out


def sam_perturb(
    weights: Tensor,
    gradient: Tensor,
    *,
    rho: float,
    synthetic: Tensor | None = None,
    beta: float = 1.0,
    adaptive: bool = False,
    norm: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the perturbed weights w + (ρ/‖d‖)·d of each row, float32 [C, n]; `weights` is unchanged.

    d = gradient, or β·synthetic + (1−β)·gradient. If `adaptive`: w + (ρ/‖w·d‖)·w·(w·d).
    norm: float32 [C], used instead of the row's own norm (for one norm over several tensors). rho may be negative
    (a step against d). A row whose norm is zero is returned as it is; one whose norm is not finite becomes NaN.

    weights: float32 [C, n]. gradient: [C, n] float32, bfloat16 or float16. synthetic: like gradient.
    out: contiguous float32 [C, n] that overlaps no input. Raises ArgumentError for a wrong shape, dtype, device
    or value.
    """
    check_perturb(weights, gradient, synthetic, norm, rho, beta, out)
    weights, gradient, synthetic = weights.contiguous(), gradient.contiguous(), _contiguous(synthetic)
    norm = _contiguous(norm)
    if out is None:
        return _perturb(weights, gradient, synthetic, norm, rho, beta, adaptive)
    _perturb_out(weights, gradient, synthetic, norm, rho, beta, adaptive, out)
    return out


def sam_step(
    weights: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    correction: Tensor | None = None,
) -> None:
    """Take one step in place: w ← w − lr·u, u = gradient + weight_decay·w [+ correction].

    With momentum, buffer ← momentum·buffer + u and u = buffer (start from a buffer of zeros).

    weights: contiguous float32 [C, n], changed. gradient: [C, n] float32, bfloat16 or float16, taken at the perturbed
    weights. momentum_buffer: contiguous float32 [C, n], changed; given if and only if momentum is not 0.
    correction: float32 [C, n], e.g. a proximal term or control variates. Raises ArgumentError for a wrong shape,
    dtype, device or value, and for tensors that overlap what is written.
    """
    check_step(weights, gradient, correction, momentum_buffer, lr, weight_decay, momentum)
    gradient, correction = gradient.contiguous(), _contiguous(correction)
    _step(weights, gradient, correction, momentum_buffer, lr, weight_decay, momentum)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


# ---- operators: contiguous tensors of checked shapes ----


def _norm_fake(weights: Tensor, *arguments: Any) -> Tensor:
    return weights.new_empty(weights.shape[0])


def _perturb_fake(weights: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(weights)


def _functional(fill: Callable[..., None], empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The form of `fill(*arguments, out)` that returns a new tensor, allocated as its fake describes it."""

    def run(*arguments: Any) -> Tensor:
        out = empty(*arguments)
        fill(*arguments, out)
        return out

    return run


_DIRECTION = "Tensor weights, Tensor gradient, Tensor? synthetic"
_norm = register(
    f"sam_norm({_DIRECTION}, float beta, bool adaptive) -> Tensor", _functional(norm_into, _norm_fake), _norm_fake
)
_norm_out = register(f"sam_norm_out({_DIRECTION}, float beta, bool adaptive, Tensor(a!) out) -> ()", norm_into, nothing)
_perturb = register(
    f"sam_perturb({_DIRECTION}, Tensor? norm, float rho, float beta, bool adaptive) -> Tensor",
    _functional(perturb_into, _perturb_fake),
    _perturb_fake,
)
_perturb_out = register(
    f"sam_perturb_out({_DIRECTION}, Tensor? norm, float rho, float beta, bool adaptive, Tensor(a!) out) -> ()",
    perturb_into,
    nothing,
)
_step = register(
    "sam_step(Tensor(a!) weights, Tensor gradient, Tensor? correction, Tensor(b!)? momentum_buffer,"
    " float lr, float weight_decay, float momentum) -> ()",
    step_into,
    nothing,
)
