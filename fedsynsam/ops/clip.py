"""Gradients that are too long, made shorter."""

from __future__ import annotations

from torch import Tensor

from .sam import sam_norm


def clip_rows_(gradient: Tensor, longest: float) -> Tensor:
    """Shorten each row g of `gradient` f32 [R, P] in place to g · min(1, longest / ‖g‖); return it.

    A row with a value that is not finite has NaN in it afterwards. The device is not waited for. Raises what
    `sam_norm` raises. Pascanu et al. 2013 (arXiv 1211.5063), algorithm 1.
    """
    scale = (longest / sam_norm(gradient, gradient)).clamp_(max=1.0)
    return gradient.mul_(scale[:, None])
