"""The server's side of a round: whom it asks, what it sends, and what it does with what comes back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from fedsynsam.fl.algorithm import PRESETS, Knowledge
from fedsynsam.fl.client import Upload
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.streams import COHORT, stream
from fedsynsam.fl.synthetic import SyntheticSet
from fedsynsam.wire import aggregate


@dataclass
class ServerState:
    """All that a run carries from one round to the next, but for the clients' residuals."""

    weights: Tensor  # [P]
    round: int = 0  # finished rounds
    previous: Tensor | None = None  # [P], the weights one round earlier
    evidence: Evidence | None = None  # what the synthetic set is learned from (fedsynsam)
    last_round: dict[int, int] = field(default_factory=dict)  # client -> `round` when it was last asked (fedlesam)
    starts: dict[int, Tensor] = field(default_factory=dict)  # round -> weights [P] then, if somebody's last
    synthetic: SyntheticSet | None = None
    synthetic_round: int = 0  # finished rounds when the set was last learned
    synthetic_loss: float | None = None  # matching loss that learning ended with; None for a set that was given
    synthetic_seconds: float | None = None  # what learning it took; not in checkpoints
    holders: dict[int, int] = field(default_factory=dict)  # client -> `synthetic_round` of the set it holds


class Server:
    """Aggregates payloads and keeps the state of a run."""

    def __init__(
        self, config: RunConfig, weights: Tensor, shared: Batch | None = None, synthetic: SyntheticSet | None = None
    ) -> None:
        self.config = config
        self.state = ServerState(weights)
        self._real_set = shared
        self._kind = PRESETS[config.algorithm].perturbation
        if self._kind == "synthetic":
            self.state.evidence = Evidence(window=config.synthetic_window)
            self.state.evidence.add(0, weights)
            self.state.synthetic = synthetic
        self._holders_of: Counter[int] = Counter()

    def restore(self, state: ServerState) -> None:
        """Go on from `state`."""
        self.state = state
        self._holders_of = Counter(state.last_round.values())

    def cohort(self, round_number: int) -> list[int]:
        """The clients of a round, ascending; a function of the seed and the round alone."""
        rng = stream(self.config.seed, COHORT, round_number)
        return sorted(rng.choice(self.config.clients, self.config.cohort_size, replace=False).tolist())

    def knowledge(self, client_id: int) -> Knowledge:
        """What the client is sent at the start of a round, together with what it kept from its last one."""
        state = self.state
        shared = state.synthetic.batch if state.synthetic is not None else self._real_set
        last = state.last_round.get(client_id)
        return Knowledge(state.weights, None if last is None else state.starts[last], shared)

    def needs_synthesis(self) -> bool:
        """Whether the synthetic set should be learned, or renewed, before the next round."""
        state = self.state
        since_start = state.round - self.config.synthetic_start
        if self._kind != "synthetic" or since_start < 0:
            return False
        if state.synthetic is not None and state.synthetic_round == state.round:
            return False  # learned, and then the round was interrupted
        if since_start == 0 and self.config.synthetic is None:
            return True
        every = self.config.synthetic_every or 0
        return every > 0 and since_start % every == 0

    def adopt(self, synthetic: SyntheticSet, loss: float, seconds: float) -> None:
        """Use `synthetic`, learned in `seconds` down to the matching loss `loss`, from the next round on."""
        state = self.state
        state.synthetic, state.synthetic_round = synthetic, state.round
        state.synthetic_loss, state.synthetic_seconds = loss, seconds

    def newly_learned(self) -> bool:
        """Whether the next round is the first that uses the set learned last."""
        return self.state.synthetic_loss is not None and self.state.synthetic_round == self.state.round

    def downlink_bytes(self, cohort: list[int]) -> int:
        """Bytes that the cohort is sent: dense weights each, and the synthetic set where a client lacks the latest."""
        state = self.state
        total = len(cohort) * state.weights.numel() * state.weights.element_size()
        if state.synthetic is not None:
            stale = [client for client in cohort if state.holders.get(client) != state.synthetic_round]
            total += len(stale) * state.synthetic.num_bytes
        return total

    def finish_round(self, uploads: list[Upload]) -> None:
        """Add the mean update, weighted by examples, to the global weights; note what the clients now have."""
        state, cohort = self.state, [up.client_id for up in uploads]
        if state.synthetic is not None:
            state.holders.update(dict.fromkeys(cohort, state.synthetic_round))
        if self._kind == "previous":
            self._note_start(cohort)
        mean = aggregate([up.payload for up in uploads], weights=[up.num_examples for up in uploads])
        state.previous = state.weights
        state.weights = state.weights + self.config.server_lr * cast(Tensor, mean)
        state.round += 1
        if state.evidence is not None:
            state.evidence.add(state.round, state.weights, [up.payload for up in uploads])

    def _note_start(self, cohort: list[int]) -> None:
        """The cohort starts from the present weights; forget those that were last for nobody else."""
        state = self.state
        for client in cohort:
            before = state.last_round.get(client)
            state.last_round[client] = state.round
            self._holders_of[state.round] += 1
            if before is not None:
                self._holders_of[before] -= 1
                if not self._holders_of[before]:
                    del self._holders_of[before], state.starts[before]
        state.starts[state.round] = state.weights
