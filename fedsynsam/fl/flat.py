"""A model whose parameters are views of one flat vector, and whose gradients accumulate in another."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # images [B, C, H, W]; labels int64 [B], or soft labels f32 [B, classes]


class FlatModel:
    """A copy of `module` that reads its weights from `weights` [1, P] and adds its gradients to `gradient` [1, P].

    Both are f32 rows, as the operations take them. Writing into `weights` changes the model; nothing is copied.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = copy.deepcopy(module).to(device)
        parameters = list(self.module.parameters())
        self.size = sum(parameter.numel() for parameter in parameters)
        self.weights = torch.empty(1, self.size, device=device)
        self.gradient = torch.zeros(1, self.size, device=device)
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
        """Write the gradient of the mean cross-entropy on `batch` to `gradient`; return the loss (detached scalar)."""
        images, labels = batch
        self.gradient.zero_()
        loss = functional.cross_entropy(self.module(images), labels)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def count_and_loss(self, batch: Batch) -> tuple[int, float]:
        """The number of right predictions on `batch`, and the sum of its losses."""
        images, labels = batch
        logits = self.module(images)
        right = int((logits.argmax(dim=1) == labels).sum())
        return right, float(functional.cross_entropy(logits, labels, reduction="sum"))


def flat_weights(module: nn.Module) -> Tensor:
    """The parameters of `module` as one new vector [P]."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
