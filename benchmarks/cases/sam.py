"""The two fused steps of sharpness-aware minimization."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fedsynsam.ops import sam_perturb, sam_step

from ..bytes import Sizes
from ..bytes import floor as floor_bytes
from ..case import Built, Case, like, normal

RHO, BETA = 0.05, 0.9
LR, DECAY, MOMENTUM = 1e-4, 5e-4, 0.9


def floor(op: str, rows: int, n: int) -> float:
    """What is read and written in float32."""
    return floor_bytes(op, rows, Sizes(n=n))


def build_perturb(mixed: bool, rows: int, n: int, device: torch.device) -> Built:
    weights, gradient = normal(rows, n, device, 1), normal(rows, n, device, 2)
    synthetic = normal(rows, n, device, 3) if mixed else None
    beta = BETA if mixed else 1.0
    (out,) = like([weights])

    def eager() -> Tensor:
        direction = gradient if synthetic is None else beta * synthetic + (1 - beta) * gradient
        return weights + (RHO / direction.norm(dim=1, keepdim=True)) * direction

    return Built(
        run=lambda: [sam_perturb(weights, gradient, rho=RHO, synthetic=synthetic, beta=beta, out=out)],
        allocating=lambda: sam_perturb(weights, gradient, rho=RHO, synthetic=synthetic, beta=beta),
        eager=eager,
    )


def build_step(momentum: float, rows: int, n: int, device: torch.device) -> Built:
    weights, gradient = normal(rows, n, device, 1), normal(rows, n, device, 2)
    buffer = like([weights])[0] if momentum else None
    eager_weights, eager_buffer = weights.clone(), buffer.clone() if buffer is not None else None

    def run() -> list[Tensor]:
        sam_step(weights, gradient, lr=LR, weight_decay=DECAY, momentum=momentum, momentum_buffer=buffer)
        return []  # in place: nothing but the inputs; `state` below is what the check compares

    def eager() -> None:
        step = gradient.add(eager_weights, alpha=DECAY)
        if eager_buffer is not None:
            step = eager_buffer.mul_(momentum).add_(step)
        eager_weights.add_(step, alpha=-LR)

    state = [weights] if buffer is None else [weights, buffer]
    return Built(run=run, eager=eager, state=state)


CASES = (
    *(
        Case(
            op="sam_perturb",
            label=f"sam_perturb{' mixed' if mixed else ''}",
            floor=partial(floor, "sam_perturb mixed" if mixed else "sam_perturb"),
            build=partial(build_perturb, mixed),
            goal="sam",
            compiled=True,
            rtol=1e-6,  # the norm is a sum, taken in another order
        )
        for mixed in (False, True)
    ),
    *(
        Case(
            op="sam_step",
            label=f"sam_step{' + momentum' if momentum else ''}",
            floor=partial(floor, "sam_step + momentum" if momentum else "sam_step"),
            build=partial(build_step, momentum),
            goal="sam",
            compiled=True,
        )
        for momentum in (0.0, MOMENTUM)
    ),
)
