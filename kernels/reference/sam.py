"""Sharpness-aware minimization in plain PyTorch: the definition of correct for `sam_norm`, `sam_perturb`, `sam_step`.

Elementwise arithmetic is float32 with one rounding an operation (no fused multiply-add), so that the other
backends, given the same norm, agree bit for bit. The norm is summed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


def direction(gradient: Tensor, synthetic: Tensor | None, beta: float) -> Tensor:
    """Return d = g, or β·synthetic + (1−β)·g with each product and the sum rounded to float32."""
    if synthetic is None:
        return gradient.float()
    return synthetic.float() * beta + gradient.float() * (1.0 - beta)


def sam_norm(
    weights: Tensor, gradient: Tensor, synthetic: Tensor | None = None, *, beta: float = 1.0, adaptive: bool = False
) -> Tensor:
    """Return ‖d‖ of each row, or ‖w·d‖ if `adaptive`: float32 [C], summed in float64."""
    d = direction(gradient, synthetic, beta)
    if adaptive:
        d = weights * d
    return torch.linalg.vector_norm(d, dim=1, dtype=torch.float64).float()


def sam_perturb(
    weights: Tensor,
    gradient: Tensor,
    synthetic: Tensor | None = None,
    *,
    rho: float,
    beta: float = 1.0,
    adaptive: bool = False,
    norm: Tensor | None = None,
) -> Tensor:
    """Return w + (ρ/‖d‖)·d, or w + (ρ/‖w·d‖)·w·(w·d) if `adaptive`; a row of zero norm is returned as it is.

    The factor ρ/norm is clamped to the float32 range (a denormal norm would make it infinite, and ∞·0 a NaN);
    a norm that is not finite turns the whole row into NaN.
    """
    d = direction(gradient, synthetic, beta)
    if norm is None:
        norm = sam_norm(weights, gradient, synthetic, beta=beta, adaptive=adaptive)
    scale = (torch.full_like(norm, rho) / norm).clamp(-LARGEST, LARGEST)
    scale = torch.where(torch.isfinite(norm), scale, torch.nan)[:, None]
    moved = weights * (weights * d) if adaptive else d
    return torch.where(norm[:, None] == 0, weights, weights + moved * scale)


def sam_step(
    weights: Tensor,
    gradient: Tensor,
    correction: Tensor | None = None,
    momentum_buffer: Tensor | None = None,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Return the new weights and momentum buffer of one step; nothing is changed in place.

    u = g + weight_decay·w [+ correction]; with a buffer: buffer ← momentum·buffer + u, u = buffer; w ← w − lr·u.
    """
    u = gradient.float()
    if weight_decay != 0:
        u = u + weights * weight_decay
    if correction is not None:
        u = u + correction
    if momentum_buffer is not None:
        u = momentum_buffer = momentum_buffer * momentum + u
    return weights - u * lr, momentum_buffer
