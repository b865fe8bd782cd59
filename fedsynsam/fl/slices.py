"""One- and two-dimensional slices of the loss around given weights, along filter-normalised directions.

Li, Xu, Taylor, Studer, Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS 2018 (arXiv 1712.09913): a
Gaussian direction of which each filter (each row of a weight tensor) has the norm of the model's filter; biases and
gains stay where they are. So slices of models of different scale can be compared.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedsynsam.fl.flat import Batch, FlatModel
from fedsynsam.fl.streams import SLICES, stream

CHUNK = 500  # images evaluated at a time


def filter_normalised(module: nn.Module, weights: Tensor, rng: np.random.Generator) -> Tensor:
    """A random direction [P] at `weights` [P]: ‖d_f‖ = ‖w_f‖ for each filter f, zero for biases and gains."""
    pieces, place = [], 0
    for parameter in module.parameters():
        size = parameter.numel()
        own = weights[place : place + size].view(parameter.shape)
        place += size
        if parameter.dim() < 2:
            pieces.append(torch.zeros(size, device=weights.device))
            continue
        drawn = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32)).to(weights.device)
        filters, drawn = own.flatten(1), drawn.flatten(1)
        scale = filters.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True).clamp_min(1e-12)
        pieces.append((drawn * scale).reshape(-1))
    return torch.cat(pieces)


class Slices:
    """The mean loss on a fixed sample, as a function of the place along one or two seeded directions."""

    def __init__(self, module: nn.Module, sample: Batch, weights: Tensor, seed: int) -> None:
        self._model = FlatModel(module, weights.device)
        self._sample, self._weights = sample, weights
        rng = stream(seed, SLICES)
        self._directions = [filter_normalised(module, weights, rng) for _ in range(2)]

    def line(self, places: np.ndarray) -> np.ndarray:
        """Loss at w + a·d for each a of `places` [n]; float64 [n]."""
        return np.array([self._loss(float(a), 0.0) for a in places])

    def plane(self, places: np.ndarray) -> np.ndarray:
        """Loss at w + a·d + b·e; float64 [n, n], rows b, columns a."""
        return np.array([[self._loss(float(a), float(b)) for a in places] for b in places])

    def _loss(self, a: float, b: float) -> float:
        first, second = self._directions
        self._model.weights.copy_((self._weights + a * first + b * second).view(1, -1))
        images, labels = self._sample
        chunks = zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
        return sum(float(self._model.count_and_loss(chunk)[1]) for chunk in chunks) / len(labels)
