"""A client's local steps of a small network on the CPU as one call: batches gathered, perturbed, gradient, step.

Between two passes of some hundred microseconds, Python's part of a step is what one waits for, and other threads wait
for Python's lock. The bits are those of `gather_images`, `SmallNetwork.gradient`, `sam_perturb` and `sam_step` in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError
from .arguments import check_apart, check_contiguous, check_tensor
from .extension import address, loaded
from .network import CPU, NetworkBatch, SmallNetwork, check_images
from .sam_arguments import check_finite, check_like, check_step


@dataclass(frozen=True)
class Source:
    """Where every step takes its direction d from: S, the gradient g of its own batch, or β·S + (1−β)·g.

    S is `given` f32 [R, P], a row for each client, or, at the weights of each step, the gradient of a `shared` batch.
    With neither and without `own` there is no perturbation.
    """

    own: bool = False
    given: Tensor | None = None
    shared: tuple[Tensor, Tensor] | None = None  # images and labels, as `SmallNetwork` takes them
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.given is not None and self.shared is not None:
            raise ArgumentError("given and shared are both there; a direction has one of them in it")
        if self.beta != 1.0 and not (self.own and (self.given is not None or self.shared is not None)):
            raise ArgumentError(f"beta is {self.beta}, but there are no two directions to mix; leave beta out")


@dataclass(frozen=True)
class StoredBatches:
    """Batches of stored images: (stored − shift) / scale of those at the indices. All on the CPU."""

    stored: Tensor  # uint8 [N, H, W, C]
    shift: Tensor  # f32 [C]
    scale: Tensor  # f32 [C]
    labels: Tensor  # int64 [N]
    indices: Tensor  # int64 [K, B]

    def __post_init__(self) -> None:
        check_images(self.stored, self.shift, self.scale)
        if self.indices.dim() != 2:
            raise ArgumentError(f"indices has shape {tuple(self.indices.shape)}; expected [K, B]")
        for name, shape in (("labels", self.stored.shape[:1]), ("indices", self.indices.shape)):
            check_tensor(name, getattr(self, name), shape, (torch.int64,), CPU)
            check_contiguous(name, getattr(self, name))


def local_steps(
    network: SmallNetwork,
    weights: Tensor,
    batches: StoredBatches,
    source: Source,
    *,
    rho: float,
    lr: float,
    gradient: Tensor,
    ahead: Tensor,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    correction: Tensor | None = None,
    clip_norm: float | None = None,
) -> Tensor:
    """Make a step w ← w − lr · (∇f(w') + weight_decay · w + correction) for each batch; return the losses f32 [K].

    w' = w + rho · d / ‖d‖, or w; with clip_norm, ∇f(w') goes through `clip_rows_`. weights f32 [1, P] are stepped;
    gradient and ahead, like them, are overwritten. momentum_buffer and correction are as in `sam_step`; correction and
    a given direction must be contiguous. One thread. Raises ArgumentError for a wrong shape, dtype or value, and
    IndexError for an index that is no image, both before the first step; a label that is no class raises ArgumentError,
    too, maybe after some.
    """
    network.check_vector("weights", weights)
    check_step(weights, gradient, correction, momentum_buffer, lr, weight_decay, momentum)
    check_finite(rho=rho, beta=source.beta, clip_norm=0.0 if clip_norm is None else clip_norm)
    written = {"weights": weights, "gradient": gradient, "ahead": ahead}
    if momentum_buffer is not None:
        written["momentum_buffer"] = momentum_buffer
    read = {"correction": correction, "given": source.given}
    for name, tensor in (*written.items(), *read.items()):
        if tensor is not None:
            check_like(name, tensor, weights)
            check_contiguous(name, tensor)
    check_apart(written, {name: [tensor] for name, tensor in read.items()})
    steps, size = batches.indices.shape
    count, height, width, channels = batches.stored.shape
    shared = None if source.shared is None else NetworkBatch(network, *source.shared)
    if shared is not None and shared.images.shape[1:] != (channels, height, width):
        raise ArgumentError(
            f"the shared images are {list(shared.images.shape[1:])}; they must be [{channels}, {height}, {width}], "
            "like those of the batches"
        )
    other = torch.empty_like(gradient) if shared is not None else None
    losses = weights.new_empty(steps)
    wrong = loaded().network_steps_cpu(
        network.fitting((channels, height, width)),
        batches.stored.data_ptr(), count, height * width, channels,
        batches.shift.data_ptr(), batches.scale.data_ptr(), batches.labels.data_ptr(),
        batches.indices.data_ptr(), steps, size,
        address(source.given), *(shared.pointers() if shared is not None else (0, (0, 0, 0, 0), 0, 0, 0, 0)),
        source.own, source.beta, rho, math.inf if clip_norm is None else clip_norm,
        weights.data_ptr(), gradient.data_ptr(), ahead.data_ptr(), address(other),
        address(correction), address(momentum_buffer), lr, weight_decay, momentum, losses.data_ptr(),
    )  # fmt: skip
    if wrong == 1:
        raise ArgumentError(network.no_class)
    if wrong == 2:
        raise IndexError(f"an index of an image is not from 0 to {count - 1}")
    return losses
