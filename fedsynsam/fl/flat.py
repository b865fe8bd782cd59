"""A model whose parameters are views of one flat vector, and whose gradients accumulate in another."""

from __future__ import annotations

import copy
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedsynsam.fl.small import small_network

Batch = tuple[Tensor, Tensor]  # images [B, C, H, W]; labels int64 [B], or soft labels f32 [B, classes]


class RowBatch(NamedTuple):
    """A batch for each of R clients, padded to the same length B."""

    images: Tensor  # f32 [R, B, C, H, W]
    labels: Tensor  # int64 [R, B]
    share: Tensor | None  # f32 [R, B]: weight of an example in its client's mean, 0 for padding; None: 1 / B


class RowModel(Protocol):
    """R copies of a model, one a row: weights, and the gradients that were last computed, f32 [R, P]."""

    weights: Tensor
    gradient: Tensor

    def backward(self, batch: Batch) -> Tensor:
        """Write each row's gradient of the mean cross-entropy on the one `batch`; return the losses [R], detached."""

    def backward_each(self, batch: RowBatch) -> Tensor:
        """Write each row's gradient of the mean cross-entropy on its own batch; return the losses [R], detached."""


class FlatModel:
    """The `RowModel` of one client: a copy of `module` that reads `weights` [1, P] and adds to `gradient` [1, P].

    Writing into `weights` changes the model; nothing is copied. `gradient` may be another model's, to share it. Where
    this library has passes of its own for such a model, they are used in the place of PyTorch's.
    """

    def __init__(self, module: nn.Module, device: torch.device, gradient: Tensor | None = None) -> None:
        self.module = copy.deepcopy(module).to(device)
        self.network = small_network(self.module)
        parameters = list(self.module.parameters())
        self.size = sum(parameter.numel() for parameter in parameters)
        self.weights = torch.empty(1, self.size, device=device)
        self.gradient = torch.zeros(1, self.size, device=device) if gradient is None else gradient
        views = zip(parameters, self.split(self.weights), self.split(self.gradient), strict=True)
        for parameter, weights, gradient in views:
            weights.copy_(parameter.detach())
            parameter.data = weights
            parameter.grad = gradient

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of `flat` ([P] or [1, P]), one a parameter, in the module's order."""
        shapes = [parameter.shape for parameter in self.module.parameters()]
        pieces = flat.view(-1).split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def backward(self, batch: Batch) -> Tensor:
        """Write the gradient of the mean cross-entropy on `batch` to `gradient`; return the loss [1], detached."""
        return self._backward(*batch, None)

    def backward_each(self, batch: RowBatch) -> Tensor:
        """`backward` on the batch of the one client."""
        images, labels, share = batch
        return self._backward(images[0], labels[0], None if share is None else share[0])

    def _backward(self, images: Tensor, labels: Tensor, share: Tensor | None) -> Tensor:
        if self.network is not None and self.network.takes(images):
            return self.network.gradient(self.weights, images, labels, share, out=self.gradient).view(1)
        self.gradient.zero_()
        losses = functional.cross_entropy(self.module(images), labels, reduction="mean" if share is None else "none")
        loss = losses if share is None else share @ losses
        loss.backward()
        return loss.detach().view(1)

    @torch.no_grad()
    def count_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The number of right predictions on `batch`, int64 [], and the sum of its losses, f32 []."""
        images, labels = batch
        if self.network is not None and self.network.takes(images):
            return self.network.evaluate(self.weights, images, labels)
        logits = self.module(images)
        right = (logits.argmax(dim=1) == labels).sum()
        return right, functional.cross_entropy(logits, labels, reduction="sum")


def flat_weights(module: nn.Module) -> Tensor:
    """The parameters of `module` as one new vector [P]."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
