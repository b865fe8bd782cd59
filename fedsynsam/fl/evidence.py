"""What the server has seen of a run: the global weights after each round, and the mean descent that led on from them.

The synthetic set is learned from this alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fedsynsam.fl.labels import LabelMix


@dataclass
class Evidence:
    """The last `window` rounds: two vectors [P] a round, and the mix of labels of its cohort.

    A client's *descent* is what the gradients of its own loss made of its update, as the server received it: C(Δ_i), or
    a part of it where a correction moves clients, too (`memory.descent`). Single descents say mostly which classes a
    client has; their mean over a cohort says what is left when these differences cancel.
    """

    window: int
    label_mix: LabelMix | None = None  # None: mixes of labels cannot be told
    weights: dict[int, Tensor] = field(default_factory=dict)  # round -> global weights [P] after it
    descents: dict[int, Tensor] = field(default_factory=dict)  # round -> mean descent [P] of its cohort
    mixes: dict[int, Tensor] = field(default_factory=dict)  # round -> mean mix of labels [classes] of its cohort

    def add(self, round_number: int, weights: Tensor, descents: Iterable[Tensor] = ()) -> None:
        """Record the global weights after `round_number`, and the clients' descents [P] in it, in their order."""
        self.weights[round_number] = weights
        count = 0
        for descent in descents:
            count += 1
            _accumulate(self.descents, round_number, descent)
            if self.label_mix is not None:
                _accumulate(self.mixes, round_number, self.label_mix(descent))
        for sums in (self.descents, self.mixes):
            if round_number in sums:
                sums[round_number] /= count
        for kept in (self.weights, self.descents, self.mixes):
            for old in [key for key in kept if key < round_number - self.window]:
                del kept[old]

    @property
    def rounds(self) -> list[int]:
        """The rounds whose descents can be held against the weights that they started from."""
        return [number for number in self.descents if number - 1 in self.weights]

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of one of `rounds`, uniformly: weights w_j [P], w_j + mean descent [P], mix of labels [classes] or None."""
        rounds = self.rounds
        chosen = rounds[int(rng.integers(len(rounds)))]
        start = self.weights[chosen - 1]
        return start, start + self.descents[chosen], self.mixes.get(chosen)

    def segment(self, length: int, average: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Weights w_j [P], j uniform, and the mean of `average` weights from w_{j+length} on, as far as they go."""
        first, newest = min(self.weights), max(self.weights)
        last = max(first, newest - length - average + 1)
        start = int(rng.integers(first, last + 1))
        goals = [self.weights[r] for r in range(start + length, start + length + average) if r in self.weights]
        return self.weights[start], sum(goals[1:], goals[0]) / len(goals)


def _accumulate(sums: dict[int, Tensor], key: int, term: Tensor) -> None:
    if key in sums:
        sums[key] += term
    else:
        sums[key] = term.clone()
