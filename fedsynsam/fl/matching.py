"""Two ways to say how well a synthetic set explains what the server has seen; both are differentiable in the set.

Gradient matching: the set's gradient points against a descent, in the cosine of the flat vectors (Zhao et al. 2021,
arXiv 2006.05929, with descents in the place of real gradients). A descent is a cohort's mean; then each class of images
counts as much as the cohort has of it.
Trajectory matching: gradient descent on the set leads from the start to the goal (Cazenavette et al. 2022,
arXiv 2203.11932; in federated learning DynaFed, Pi et al. 2023, arXiv 2211.10878).
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.func import functional_call

from fedsynsam.fl.data import channels_last
from fedsynsam.fl.small import small_network


class FlatLoss:
    """The loss of `module` as a function of flat weights [P], differentiable twice in weights, images and labels.

    Where this library has passes of its own for such a model, gradients take `threads` threads: the bits are the same.
    """

    def __init__(self, module: nn.Module, threads: int = 1) -> None:
        self._module, self._network, self._threads = module, small_network(module), threads
        self._named = [(name, parameter.shape) for name, parameter in module.named_parameters()]
        self._sizes = [shape.numel() for _, shape in self._named]

    def __call__(self, weights: Tensor, images: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
        """Cross-entropy of `images` [M, …] against class indices or soft `labels`.

        The mean over images, or their sum weighted by `shares` [M].
        """
        pieces = zip(self._named, weights.split(self._sizes), strict=True)
        parameters = {name: piece.view(shape) for (name, shape), piece in pieces}
        outputs = functional_call(self._module, parameters, (channels_last(images),))
        if shares is None:
            return functional.cross_entropy(outputs, labels)
        return shares @ functional.cross_entropy(outputs, labels, reduction="none")

    def gradient(self, weights: Tensor, images: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
        """Gradient in the weights [P], itself differentiable in weights, images and soft labels."""
        if self._network is not None and self._network.takes(images):
            return self._network.differentiable_gradient(weights, images, labels, shares, self._threads)
        if not weights.requires_grad:
            weights = weights.detach().requires_grad_()
        return torch.autograd.grad(self(weights, images, labels, shares), weights, create_graph=True)[0]


def gradient_mismatch(
    loss: FlatLoss, images: Tensor, logits: Tensor, start: Tensor, goal: Tensor, shares: Tensor | None = None
) -> Tensor:
    """1 − cos(∇f_syn(start), start − goal), a scalar in [0, 2]; images count equally or by `shares` [M]."""
    if shares is not None:  # images that do not count need not be computed
        counted = torch.nonzero(shares).squeeze(1)
        images, logits, shares = images[counted], logits[counted], shares[counted]
    gradient = loss.gradient(start, images, logits.softmax(dim=1), shares)
    return 1.0 - functional.cosine_similarity(gradient, start - goal, dim=0)


def trajectory_mismatch(
    loss: FlatLoss, images: Tensor, logits: Tensor, log_rate: Tensor, start: Tensor, goal: Tensor, steps: int
) -> Tensor:
    """‖θ_N − goal‖² / ‖start − goal‖², θ_0 = start, θ ← θ − rate · ∇f_syn(θ) taken N = `steps` times."""
    weights, labels, rate = start, logits.softmax(dim=1), log_rate.exp()
    for _ in range(steps):
        weights = weights - rate * loss.gradient(weights, images, labels)
    tiny = torch.finfo(weights.dtype).tiny  # start and goal may coincide, when nothing moved
    return (weights - goal).square().sum() / (start - goal).square().sum().clamp_min(tiny)
