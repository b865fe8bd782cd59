"""Where the perturbation of a local step comes from: the one choice that tells FedSAM, FedLESAM and FedSynSAM apart.

Each source gives, at the local weights w of R clients, a direction d; the step then uses the gradient at
w + rho * d / ||d||, row by row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsynsam.fl.flat import Batch, RowBatch, RowModel
from fedsynsam.fl.steps import Steps
from fedsynsam.ops import sam_perturb
from fedsynsam.ops.local_steps import Source


@dataclass(frozen=True)
class Direction:
    """d = `gradient`, or beta * `synthetic` + (1 - beta) * `gradient`; rows [R, P]. A row of zeros: a plain step."""

    gradient: Tensor
    synthetic: Tensor | None = None
    beta: float = 1.0

    def same_tensors(self, other: Direction) -> bool:
        """Whether the two are the same function of the same tensors, whatever these hold."""
        same = self.gradient is other.gradient and self.synthetic is other.synthetic
        return same and self.beta == other.beta


class Perturbation(ABC):
    """A source of directions for R clients in one round."""

    @abstractmethod
    def direction(self, model: RowModel, batch: RowBatch, step: int) -> Direction | None:
        """The direction at `model.weights`, or None for plain steps. May overwrite `model.gradient`."""

    def tensors(self) -> list[Tensor]:
        """What tells one round's source from another's of the same class and options."""
        return []

    def results(self) -> list[Tensor]:
        """What the steps of the round made of the clients' own vectors, [R, P] each."""
        return []


class SteadyPerturbation(Perturbation):
    """One whose directions come from the same source in every step of a round."""

    _source: Source | None = None  # of the round whose steps are being made

    @abstractmethod
    def source(self, model: RowModel) -> Source:
        """The source of a round that begins at `model.weights`; rows [R, P]. May overwrite `model.gradient`."""

    def direction(self, model: RowModel, batch: RowBatch, step: int) -> Direction | None:
        if step == 0 or self._source is None:
            self._source = self.source(model)
        source = self._source
        other = source.given
        if source.shared is not None:
            model.backward(source.shared)
            other = model.gradient.clone() if source.own else model.gradient
        if source.own:
            model.backward_each(batch)
            return Direction(model.gradient, other, source.beta)
        return None if other is None else Direction(other)


class NoPerturbation(SteadyPerturbation):
    """FedAvg: every step is plain."""

    def source(self, model: RowModel) -> Source:
        return Source()


class LocalGradient(SteadyPerturbation):
    """FedSAM: d = the gradient of the client's own batch (Qu et al. 2022, arXiv 2206.02618)."""

    def source(self, model: RowModel) -> Source:
        return Source(own=True)


class PreviousUpdate(SteadyPerturbation):
    """FedLESAM: d = w_t − w at the client's last active round, reversed (Fan et al. 2024, arXiv 2405.18890).

    With u = w_last − w_t this is the descent that the server made since, so that −u ascends: d = w_last − w_t.
    A client that was never active (None in `last`) takes plain steps.
    """

    def __init__(self, current: Tensor, last: Sequence[Tensor | None]) -> None:
        self._rows = torch.stack([torch.zeros_like(current) if w is None else w - current for w in last])

    def source(self, model: RowModel) -> Source:
        return Source(given=self._rows)

    def tensors(self) -> list[Tensor]:
        return [self._rows]


class FixedSet(SteadyPerturbation):
    """FedSynSAM (and `realset`): d = beta * gradient of a small shared set + (1 - beta) * local gradient.

    With `once` the shared gradient is taken at the first step only (`refresh = round`).
    """

    def __init__(self, shared: Batch, beta: float, *, once: bool = False) -> None:
        self._shared, self._beta, self._once = shared, beta, once

    def source(self, model: RowModel) -> Source:
        own = self._beta != 1.0
        if not self._once:
            return Source(own, shared=self._shared, beta=self._beta)
        model.backward(self._shared)
        return Source(own, given=model.gradient.clone(), beta=self._beta)

    def tensors(self) -> list[Tensor]:
        return list(self._shared)


class Consensus(Perturbation):
    """FedSMOO: d = g − μ_i − s, ε = ρ d / ‖d‖, μ_i ← μ_i + ε − s (Sun et al. 2023, arXiv 2305.11584).

    The duals μ_i [R, P] pull each client's perturbation towards the one `agreed` on by all, s [P].
    """

    def __init__(self, mu: Tensor, agreed: Tensor, rho: float) -> None:
        self._before, self._agreed, self._rho = mu, agreed, rho
        self._zeros = torch.zeros_like(mu)
        self._mu: Tensor | None = None

    def direction(self, model: RowModel, batch: RowBatch, step: int) -> Direction | None:
        model.backward_each(batch)
        if step == 0:
            self._mu = self._before.clone()
        assert self._mu is not None
        direction = model.gradient - self._mu - self._agreed
        self._mu += sam_perturb(self._zeros, direction, rho=self._rho) - self._agreed
        return Direction(direction)

    def tensors(self) -> list[Tensor]:
        return [self._before, self._agreed]

    def results(self) -> list[Tensor]:
        return [] if self._mu is None else [self._mu]


class FreshData(Perturbation):
    """`oracle`: d = the gradient of fresh batches (`steps`) of the whole training set, which no real client can see."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def direction(self, model: RowModel, batch: RowBatch, step: int) -> Direction | None:
        model.backward_each(self._steps[step])
        return Direction(model.gradient)

    def tensors(self) -> list[Tensor]:
        return self._steps.tensors()
