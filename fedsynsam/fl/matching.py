"""Two ways to say how well a synthetic set explains a piece of the trajectory; both are differentiable in the set.

Gradient matching: the set's gradient at the start points from the goal to the start, in the cosine of the flat vectors
(Zhao et al. 2021, arXiv 2006.05929, with displacements of the global weights in the place of real gradients).
Trajectory matching: gradient descent on the set leads from the start to the goal (Cazenavette et al. 2022,
arXiv 2203.11932; in federated learning DynaFed, Pi et al. 2023, arXiv 2211.10878).
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.func import functional_call

from fedsynsam.fl.data import channels_last


class FlatLoss:
    """The loss of `module` as a function of flat weights [P], differentiable twice in weights, images and labels."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._named = [(name, parameter.shape) for name, parameter in module.named_parameters()]
        self._sizes = [shape.numel() for _, shape in self._named]

    def __call__(self, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `images` against class indices or soft `labels`."""
        pieces = zip(self._named, weights.split(self._sizes), strict=True)
        parameters = {name: piece.view(shape) for (name, shape), piece in pieces}
        return functional.cross_entropy(functional_call(self._module, parameters, (channels_last(images),)), labels)

    def gradient(self, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Gradient in the weights [P], itself differentiable."""
        if not weights.requires_grad:
            weights = weights.detach().requires_grad_()
        return torch.autograd.grad(self(weights, images, labels), weights, create_graph=True)[0]


def gradient_mismatch(loss: FlatLoss, images: Tensor, logits: Tensor, start: Tensor, goal: Tensor) -> Tensor:
    """1 − cos(∇f_syn(start), start − goal), a scalar in [0, 2]."""
    gradient = loss.gradient(start, images, logits.softmax(dim=1))
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
