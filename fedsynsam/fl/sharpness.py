"""Sharpness of the training loss: the largest eigenvalues of its Hessian by Lanczos, and its trace by Hutchinson.

Hessian-vector products are exact (double backward), on a fixed seeded sample of the training set.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fedsynsam.errors import NonFiniteError
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.matching import FlatLoss
from fedsynsam.fl.streams import SHARPNESS, stream

SAMPLE = 1000  # training images; the eigenvalue changes by a few per cent from one sample to another
CHUNK = 250  # images whose graph is held at a time
Product = Callable[[Tensor], Tensor]


def largest_eigenvalues(
    product: Product, start: Tensor, *, count: int = 1, tolerance: float = 1e-3, most: int | None = None
) -> list[float]:
    """The `count` algebraically largest eigenvalues of the symmetric operator `product`, descending.

    Lanczos with full reorthogonalisation from `start` [P]; ends when the bound |β·s| on the error of each value is
    below `tolerance` of the largest one, when the space is exhausted, or after `most` products (by default 50, and 30
    for each value), with a warning. Of a repeated eigenvalue one start vector finds one copy, so that on a tiny problem
    smaller ones follow it, or fewer than `count` come.
    Raises `NonFiniteError` when a product holds NaN or infinity.
    """
    most = 50 + 30 * count if most is None else most
    basis = [(start / start.norm()).double()]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        image = product(basis[-1].to(start.dtype)).double()
        if not bool(image.isfinite().all()):
            raise NonFiniteError(
                "the Hessian holds NaN or infinity: the weights have diverged; use a smaller lr or rho"
            )
        alphas.append(float(image @ basis[-1]))
        for _ in range(2):  # twice is enough to be orthogonal to rounding (Parlett)
            span = torch.stack(basis)
            image = image - span.T @ (span @ image)
        beta = float(image.norm())
        tridiagonal = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
        values, vectors = np.linalg.eigh(tridiagonal)
        errors = np.abs(beta * vectors[-1, -count:])
        scale = float(np.abs(values).max())
        exhausted = beta <= 1e-7 * max(scale, 1e-30) or len(basis) == start.numel()
        settled = len(alphas) > count and bool((errors <= tolerance * scale).all())
        if exhausted or settled or len(alphas) == most:
            if not (exhausted or settled):
                warnings.warn(
                    f"the {count} largest eigenvalues did not settle in {most} products with the Hessian; the last may "
                    f"be wrong by {float(errors.max()):.2g}", stacklevel=2,
                )  # fmt: skip
            return [float(value) for value in values[::-1][:count]]
        betas.append(beta)
        basis.append(image / beta)


def hutchinson_trace(product: Product, like: Tensor, rng: np.random.Generator, *, probes: int = 20) -> float:
    """An unbiased estimate of the operator's trace: the mean of vᵀHv over `probes` random sign vectors.

    They have the size, dtype and device of the vector `like` [P].
    """
    signs = (torch.from_numpy(rng.integers(2, size=like.numel()) * 2 - 1).to(like) for _ in range(probes))
    return float(np.mean([float(probe @ product(probe)) for probe in signs]))


class Sharpness:
    """The Hessian of the mean training loss on a fixed sample, as an operator at any weights."""

    def __init__(self, module: nn.Module, dataset: Dataset, seed: int, sample: int = SAMPLE, *, threads: int = 1):
        rng = stream(seed, SHARPNESS)
        count = len(dataset.y_train)
        chosen = torch.from_numpy(rng.choice(count, min(sample, count), replace=False)).to(dataset.y_train.device)
        self.sample: Batch = dataset.x_train[chosen], dataset.y_train[chosen]
        self._loss = FlatLoss(module, threads)
        self._seed = seed

    def product(self, weights: Tensor) -> Product:
        """v ↦ H(weights)·v for weights [P]."""
        all_images, all_labels = self.sample
        chunks = list(zip(all_images.split(CHUNK), all_labels.split(CHUNK), strict=True))

        def multiply(vector: Tensor) -> Tensor:
            total = torch.zeros_like(vector)
            for images, labels in chunks:
                point = weights.detach().clone().requires_grad_()
                gradient = self._loss.gradient(point, images, labels)
                share = len(labels) / len(all_labels)
                total += share * torch.autograd.grad(gradient, point, vector)[0]
            return total

        return multiply

    def largest(self, weights: Tensor, count: int = 1) -> list[float]:
        """The largest eigenvalues at `weights` [P], from the same start vector each time."""
        rng = stream(self._seed, SHARPNESS, 1)
        start = torch.from_numpy(rng.standard_normal(len(weights), dtype=np.float32)).to(weights.device)
        return largest_eigenvalues(self.product(weights), start, count=count)
