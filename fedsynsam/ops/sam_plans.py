"""`sam_perturb` and `sam_step` of the same tensors again and again: checked once, then only run.

For a small model the checks and PyTorch's dispatcher cost more than the arithmetic. On the CPU a plan calls the
extension at once; elsewhere it is the public function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backend
from .arguments import DTYPES, check_apart
from .extension import address, loaded
from .sam import sam_perturb, sam_step
from .sam_arguments import check_perturb, check_step

Plan = Callable[[], Any]  # it returns nothing of use


def plan_perturb(
    weights: Tensor, gradient: Tensor, *, rho: float, synthetic: Tensor | None = None, beta: float = 1.0, out: Tensor
) -> Plan:
    """Return what does `sam_perturb(weights, gradient, ..., out=out)` with the values that the tensors have by then.

    Raises what `sam_perturb` raises, now; backend and number of threads are those of now, too.
    """
    check_perturb(weights, gradient, synthetic, None, rho, beta, out)
    read = {"weights": weights, "gradient": gradient, "synthetic": synthetic}
    if not _extension_serves("sam_perturb", *read.values()):
        return lambda: sam_perturb(weights, gradient, rho=rho, synthetic=synthetic, beta=beta, out=out)
    check_apart({"out": out}, {name: [tensor] for name, tensor in read.items()})
    direction = (gradient.data_ptr(), address(synthetic), DTYPES[gradient.dtype], beta, False)
    arguments = (weights.data_ptr(), *direction, *weights.shape, rho, 0, out.data_ptr(), torch.get_num_threads())
    return _call(loaded().sam_perturb_cpu, arguments, weights, gradient, synthetic, out)


def plan_step(
    weights: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    correction: Tensor | None = None,
) -> Plan:
    """Return what does `sam_step(weights, gradient, ...)` with the values that the tensors have by then.

    Raises what `sam_step` raises, now; backend and number of threads are those of now, too.
    """
    check_step(weights, gradient, correction, momentum_buffer, lr, weight_decay, momentum)
    if not _extension_serves("sam_step", weights, gradient, correction):
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        return lambda: sam_step(weights, gradient, **options, momentum_buffer=momentum_buffer, correction=correction)
    written = {"weights": weights}
    if momentum_buffer is not None:
        written["momentum_buffer"] = momentum_buffer
    check_apart(written, {"gradient": [gradient], "correction": [correction]})
    tensors = (weights.data_ptr(), gradient.data_ptr(), DTYPES[gradient.dtype])
    optional = (address(correction), address(momentum_buffer))
    arguments = (*tensors, *optional, lr, weight_decay, momentum, *weights.shape, torch.get_num_threads())
    return _call(loaded().sam_step_cpu, arguments, weights, gradient, correction, momentum_buffer)


def _extension_serves(op: str, *read: Tensor | None) -> bool:
    """Whether the CPU extension would run `op` on these tensors where they lie, without copies."""
    tensors = [tensor for tensor in read if tensor is not None]
    return backend.choose(op, tensors[0].device) == "cpu" and all(tensor.is_contiguous() for tensor in tensors)


def _call(function: Callable[..., None], arguments: tuple[Any, ...], *held: Tensor | None) -> Plan:
    """A call of `function`; `held` are the tensors whose addresses are among the arguments."""

    def plan(held: tuple[Tensor | None, ...] = held) -> None:
        function(*arguments)

    return plan
