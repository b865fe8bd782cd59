"""What the server has seen of a run: the global weights after each round, and payloads that led from one to the next.

The synthetic set is learned from this alone. A payload is kept as it came, so that a sparse one stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
from torch import Tensor

from fedsynsam.wire import Payload

T = TypeVar("T")

MOST_PAYLOADS = 10  # kept of a round
ROOM = 4  # dense vectors: what the payloads kept of a round take in bytes at most, if that is room for one


@dataclass
class Evidence:
    """The last `window` rounds, and of each as many payloads as fit into `ROOM` dense vectors, ten at most.

    Where a correction moves clients, too, an update is not the descent of a loss; then `ROOM` descents are kept as well
    (`memory.descent`), and what the cohort's mean descent was.
    """

    window: int
    weights: dict[int, Tensor] = field(default_factory=dict)  # round -> global weights [P] after it
    payloads: dict[int, list[Payload]] = field(default_factory=dict)  # round -> payloads received in it
    descents: dict[int, list[Tensor]] = field(default_factory=dict)  # round -> clients' descents [P] in it
    mean_descents: dict[int, Tensor] = field(default_factory=dict)  # round -> mean of its cohort's descents [P]

    def add(
        self,
        round_number: int,
        weights: Tensor,
        payloads: Sequence[Payload] = (),
        descents: Sequence[Tensor] = (),
        mean_descent: Tensor | None = None,
    ) -> None:
        """Record the global weights after `round_number` and what the server received in it."""
        self.weights[round_number] = weights
        largest = max((payload.wire_bytes for payload in payloads), default=1)
        kept = min(len(payloads), MOST_PAYLOADS, max(1, ROOM * weights.nbytes // largest))
        self.payloads[round_number] = _spread(payloads, kept, round_number)
        self.descents[round_number] = _spread(descents, min(len(descents), ROOM), round_number)
        if mean_descent is not None:
            self.mean_descents[round_number] = mean_descent
        for old in [key for key in self.weights if key < round_number - self.window]:
            del self.weights[old], self.payloads[old], self.descents[old]
            self.mean_descents.pop(old, None)

    def sample_update(self, rng: np.random.Generator) -> tuple[Tensor, Tensor] | None:
        """Global weights w_j and what a client made of them in the next round, C(Δ_i); both [P], uniform over rounds.

        Where descents are kept, it is a client's descent. None when no payload is there.
        """
        rounds = [r for r, received in self.payloads.items() if received and r - 1 in self.weights]
        if not rounds:
            return None
        chosen = rounds[int(rng.integers(len(rounds)))]
        if descents := self.descents.get(chosen):
            return self.weights[chosen - 1], descents[int(rng.integers(len(descents)))]
        received = self.payloads[chosen]
        return self.weights[chosen - 1], cast(Tensor, received[int(rng.integers(len(received)))].decompress())

    def sample(self, segment: int, drift: float, average: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A starting point and the point that it should lead to, both [P].

        The start is w_j + c·C(Δ_i), with j uniform, i a client of the round after w_j, and c uniform in [0, drift]: a
        point where local training may go. The goal is the mean of `average` weights from w_{j+segment} on; where
        descents are kept, of where the mean descents since w_j lead.
        """
        first, newest = min(self.weights), max(self.weights)
        last = max(first, newest - segment - average + 1)
        start_round = int(rng.integers(first, last + 1))
        goals = [
            self._reached(start_round, r)
            for r in range(start_round + segment, start_round + segment + average)
            if r in self.weights
        ]
        goal = sum(goals[1:], goals[0]) / len(goals)
        start = self.weights[start_round]
        received = self.payloads[start_round + 1]
        if drift > 0.0 and received:
            payload = received[int(rng.integers(len(received)))]
            start = start + drift * float(rng.random()) * cast(Tensor, payload.decompress())
        return start, goal

    def _reached(self, first: int, last: int) -> Tensor:
        """Where the descents of rounds `first` + 1 to `last` lead: to the weights then, if updates are descents."""
        passed = range(first + 1, last + 1)
        if not all(r in self.mean_descents for r in passed):
            return self.weights[last]
        return cast(Tensor, self.weights[first] + sum(self.mean_descents[r] for r in passed))


def _spread(items: Sequence[T], count: int, round_number: int) -> list[T]:
    """`count` of the cohort's `items`, spread over it: a different part of it in each round."""
    return [items[(round_number + i * len(items) // count) % len(items)] for i in range(count)]
