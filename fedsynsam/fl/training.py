"""The clients' part of a round: what they know, their local steps, and what they send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from fedsynsam.compress import Compressor, State
from fedsynsam.errors import NonFiniteError
from fedsynsam.fl.algorithm import PRESETS, correction_for, perturbation_for
from fedsynsam.fl.client import LocalRound, Upload, send
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.cosines import Probe
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.memory import descent, next_of_client
from fedsynsam.fl.records import Record, Records
from fedsynsam.fl.server import Server
from fedsynsam.fl.steps import Steps, draw
from fedsynsam.fl.streams import BATCHES, COMPRESSION, number, stream
from fedsynsam.fl.workers import Worker
from fedsynsam.wire import Payload
from fedsynsam.wire.manifest import Manifest

Sent = tuple[Payload, State, int]  # the payload as the server has it, the compressor's next state, bytes


@dataclass(frozen=True)
class Training:
    """Trains groups of clients of a run, and takes what they upload over the wire."""

    config: RunConfig
    compressor: Compressor
    dataset: Dataset
    parts: Sequence[np.ndarray]  # each client's examples
    server: Server
    records: Records
    real_set: Batch
    held_out: Batch

    @cached_property
    def _width(self) -> int:
        """Examples that every client's batch is padded to, always as many, so that all rounds have the same shapes."""
        return widest_batch(self.config, self.parts)

    def clients(self, worker: Worker, client_ids: Sequence[int], *, probing: bool) -> list[Upload]:
        """The uploads of a group of clients in the round to come; with `probing` they measure cosines on the way.

        Raises `NonFiniteError` naming the first client that diverged.
        """
        config, current = self.config, self.server.state.round + 1
        draws = [
            draw(self.parts[client], config, stream(config.seed, BATCHES, current, client)) for client in client_ids
        ]
        records = [self.records.get(client) for client in client_ids]
        knowledge = self.server.knowledge(client_ids, records)
        work = LocalRound(
            Steps(self.dataset, draws, None if config.engine == "sequential" else self._width),
            perturbation_for(config, knowledge, self.dataset, current, client_ids),
            correction_for(config, knowledge),
        )
        probes = [self._probe(worker, knowledge.weights) for _ in client_ids] if probing else []
        updates, losses, *duals = worker.train(knowledge.weights, work, config, probes)
        sent = self._send(updates, client_ids, records, "residual")
        sent_duals = self._send(duals[0], client_ids, records, "mu_residual", 1) if duals else [None] * len(client_ids)
        uploads = []
        for row, (client, loss) in enumerate(zip(client_ids, losses.tolist(), strict=True)):
            payload, state, wire_bytes = sent[row]
            record = next_of_client(config, records[row], knowledge.memory, payload)
            _remember(record, "residual", state)
            mu = None
            if (dual := sent_duals[row]) is not None:
                mu, dual_state, dual_bytes = dual
                wire_bytes += dual_bytes
                record["mu"] = duals[0][row]
                _remember(record, "mu_residual", dual_state)
            cosines = probes[row].result if probes else {}
            own = descent(config, record, payload) if PRESETS[config.algorithm].learns_a_set else None
            uploads.append(Upload(client, payload, mu, wire_bytes, record, loss, len(self.parts[client]), cosines, own))
        return uploads

    def _send(
        self, rows: Tensor, client_ids: Sequence[int], records: Sequence[Mapping[str, Tensor]], name: str, *use: int
    ) -> list[Sent]:
        """Compress and send `rows` [R, P]; the records' vectors `name` hold what was left unsent before."""
        config, current = self.config, self.server.state.round + 1
        manifest = Manifest.of(rows[0])
        states = [
            State(manifest, record.get(name), self.records.times(client))
            for client, record in zip(client_ids, records, strict=True)
        ]
        seeds = [number(config.seed, COMPRESSION, current, client, *use) for client in client_ids]
        try:
            return send(self.compressor, rows, states, seeds=seeds, encode=config.encode)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"client {client_ids[error.row]} diverged in round {current} ({error}); clip gradients (clip_norm, 10 "
                "is usual), or use a smaller lr or rho"
            ) from error

    def _probe(self, worker: Worker, start: Tensor) -> Probe:
        state = self.server.state
        sets = {"real": self.real_set}
        if state.synthetic is not None:
            sets["synthetic"] = state.synthetic.batch
        reversed_update = None if state.previous is None else state.previous - state.weights
        return Probe(worker.single, self.held_out, start, reversed_update, sets)


def widest_batch(config: RunConfig, parts: Sequence[np.ndarray]) -> int:
    """Examples in the largest batch of any client; `parts` are the clients' examples."""
    return min(config.batch_size, max(map(len, parts)))


def _remember(record: Record, name: str, state: State) -> None:
    """Note in a client's record what its compressor left unsent, if it keeps that."""
    if state.residual is not None:
        record[name] = state.residual


def finetune(worker: Worker, weights: Tensor, batch: Batch, rate: float, steps: int) -> Tensor:
    """The weights [P] after `steps` of gradient descent on the cross-entropy of `batch`: DynaFed's server step."""
    model = worker.single
    model.weights.copy_(weights.view(1, -1))
    for _ in range(steps):
        model.backward(batch)
        model.weights.sub_(model.gradient, alpha=rate)
    return model.weights[0].clone()
