"""The server's side of a round: whom it asks, what it sends, and what it does with what comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from fedsynsam.fl import memory as rules
from fedsynsam.fl.algorithm import PRESETS, Knowledge
from fedsynsam.fl.client import Upload
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.labels import LabelMix
from fedsynsam.fl.streams import COHORT, stream
from fedsynsam.fl.synthetic import SyntheticSet
from fedsynsam.wire import aggregate


@dataclass
class ServerState:
    """All that a run carries from one round to the next, but for the clients' records."""

    weights: Tensor  # [P]
    round: int = 0  # finished rounds
    previous: Tensor | None = None  # [P], the weights one round earlier
    memory: dict[str, Tensor] = field(default_factory=dict)  # vectors [P] that the algorithm keeps (`memory`)
    evidence: Evidence | None = None  # what the synthetic set is learned from (fedsynsam, dynafed)
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
        self,
        config: RunConfig,
        weights: Tensor,
        shared: Batch | None = None,
        synthetic: SyntheticSet | None = None,
        label_mix: LabelMix | None = None,
    ) -> None:
        self.config = config
        self.state = ServerState(weights)
        self._real_set = shared
        self._preset = PRESETS[config.algorithm]
        if self._preset.learns_a_set:
            self.state.synthetic = synthetic
            if config.synthetic is None or config.synthetic_every:  # otherwise nothing will be learned from it
                self.state.evidence = Evidence(config.synthetic_window, label_mix)
                self.state.evidence.add(0, weights)
        self._holders_of: Counter[int] = Counter()

    def restore(self, state: ServerState) -> None:
        """Go on from `state`."""
        self.state = state
        self._holders_of = Counter(state.last_round.values())

    def cohort(self, round_number: int) -> list[int]:
        """The clients of a round, ascending; a function of the seed and the round alone."""
        rng = stream(self.config.seed, COHORT, round_number)
        return sorted(rng.choice(self.config.clients, self.config.cohort_size, replace=False).tolist())

    def start(self) -> Tensor:
        """The weights [P] that clients start from: w, or with server-side SAM w − ρ Δ̄ / ‖Δ̄‖, Δ̄ the last mean update."""
        state = self.state
        if self._preset.server_step == "sam" and "update" in state.memory:
            return rules.ahead(state.weights, -state.memory["update"], self.config.rho or 0.0)
        return state.weights

    def knowledge(self, client_ids: Sequence[int], own: Sequence[Mapping[str, Tensor]]) -> Knowledge:
        """What the clients are sent at the start of a round, together with what they kept; `own` are their vectors."""
        state = self.state
        shared = state.synthetic.batch if state.synthetic is not None else self._real_set
        last = [state.last_round.get(client) for client in client_ids]
        starts = [None if number is None else state.starts[number] for number in last]
        return Knowledge(self.start(), starts, shared, state.memory, own)

    def needs_synthesis(self) -> bool:
        """Whether the synthetic set should be learned, or renewed, before the next round."""
        state = self.state
        since_start = state.round - self.config.synthetic_start
        if not self._preset.learns_a_set or since_start < 0:
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
        """Bytes that the cohort is sent: dense vectors each, and the synthetic set where a client lacks the latest."""
        vectors = [self.state.weights, *rules.sent_vectors(self.state.memory)]
        total = len(cohort) * sum(vector.numel() * vector.element_size() for vector in vectors)
        if (synthetic := self._broadcast) is not None:
            stale = [client for client in cohort if self.state.holders.get(client) != self.state.synthetic_round]
            total += len(stale) * synthetic.num_bytes
        return total

    @property
    def _broadcast(self) -> SyntheticSet | None:
        """The synthetic set, if clients need it."""
        return self.state.synthetic if self._preset.perturbation == "synthetic" else None

    def finish_round(self, uploads: list[Upload], finetune: Callable[[Tensor, SyntheticSet], Tensor]) -> None:
        """Take the server's step, w ← w + server_lr · Δ̄ [+ h], and note what the clients now have.

        Δ̄ is the mean update, weighted by examples; h the mean dual of all clients, for a dual-corrected step.
        `finetune` gives the weights after fine-tuning on the synthetic set; it is called where that is the server step.
        """
        state, cohort, kind = self.state, [up.client_id for up in uploads], self._preset.server_step
        payloads = [up.payload for up in uploads]
        if self._broadcast is not None:
            state.holders.update(dict.fromkeys(cohort, state.synthetic_round))
        if self._preset.perturbation == "previous":
            self._note_start(cohort)
        mean = cast(Tensor, aggregate(payloads, weights=[up.num_examples for up in uploads]))
        duals = [up.mu for up in uploads if up.mu is not None]
        state.memory = rules.next_of_server(self.config, state.memory, mean, payloads, duals)
        weights = state.weights + self.config.server_lr * mean
        if kind in ("dual", "sam"):
            weights = weights + state.memory["dual"]
        if kind == "finetune" and state.synthetic is not None:
            weights = finetune(weights, state.synthetic)
        state.previous, state.weights = state.weights, weights
        state.round += 1
        if state.evidence is not None:
            state.evidence.add(state.round, state.weights, map(_descent, uploads))

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


def _descent(upload: Upload) -> Tensor:
    """What the gradients of the client's own loss made of its update [P]."""
    return upload.descent if upload.descent is not None else cast(Tensor, upload.payload.decompress())
