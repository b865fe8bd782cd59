"""Where the perturbation of a local step comes from: the one choice that tells FedSAM, FedLESAM and FedSynSAM apart.

Each source gives, at the local weights w, a direction d; the step then uses the gradient at w + rho * d / ||d||.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsynsam.fl.data import Dataset, take
from fedsynsam.fl.flat import Batch, FlatModel


@dataclass(frozen=True)
class Direction:
    """d = `gradient`, or beta * `synthetic` + (1 - beta) * `gradient`; rows [1, P]."""

    gradient: Tensor
    synthetic: Tensor | None = None
    beta: float = 1.0


class Perturbation(Protocol):
    """A source of directions for one client in one round."""

    def direction(self, model: FlatModel, batch: Batch) -> Direction | None:
        """The direction at `model.weights`, or None for a plain step. May overwrite `model.gradient`."""


class NoPerturbation:
    """FedAvg: every step is plain."""

    def direction(self, model: FlatModel, batch: Batch) -> Direction | None:
        return None


class LocalGradient:
    """FedSAM: d = the gradient of the client's own batch (Qu et al. 2022, arXiv 2206.02618)."""

    def direction(self, model: FlatModel, batch: Batch) -> Direction | None:
        model.backward(batch)
        return Direction(model.gradient)


class PreviousUpdate:
    """FedLESAM: d = w_t − w at the client's last active round, reversed (Fan et al. 2024, arXiv 2405.18890).

    With u = w_last − w_t this is the descent that the server made since, so that −u ascends: d = w_last − w_t.
    A client that was never active takes plain steps.
    """

    def __init__(self, current: Tensor, last: Tensor | None) -> None:
        self._direction = None if last is None else Direction((last - current).view(1, -1))

    def direction(self, model: FlatModel, batch: Batch) -> Direction | None:
        return self._direction


class FixedSet:
    """FedSynSAM (and `realset`): d = beta * gradient of a small shared set + (1 - beta) * local gradient.

    With `once` the shared gradient is taken at the first step only (`refresh = round`).
    """

    def __init__(self, shared: Batch, beta: float, *, once: bool = False) -> None:
        self._shared, self._beta, self._once = shared, beta, once
        self._gradient: Tensor | None = None

    def direction(self, model: FlatModel, batch: Batch) -> Direction | None:
        if self._gradient is None or not self._once:
            model.backward(self._shared)
            if self._beta == 1.0 and not self._once:
                return Direction(model.gradient)
            self._gradient = model.gradient.clone()
        if self._beta == 1.0:
            return Direction(self._gradient)
        model.backward(batch)
        return Direction(model.gradient, self._gradient, self._beta)


class FreshData:
    """`oracle`: d = the gradient of a fresh batch of the whole training set, which no real client can see."""

    def __init__(self, dataset: Dataset, batch_size: int, rng: np.random.Generator) -> None:
        self._dataset, self._batch_size, self._rng = dataset, batch_size, rng

    def direction(self, model: FlatModel, batch: Batch) -> Direction | None:
        drawn = self._rng.integers(len(self._dataset.y_train), size=self._batch_size)
        indices = torch.from_numpy(drawn).to(self._dataset.y_train.device)
        model.backward((take(self._dataset.x_train, indices), self._dataset.y_train[indices]))
        return Direction(model.gradient)
