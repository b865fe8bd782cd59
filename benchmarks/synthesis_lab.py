"""What a finished run's server had, and where its clients would use a synthetic set learned from it.

The trajectory and the payloads come from the run's checkpoint; the clients' local weights are made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fedsynsam.fl.algorithm import real_set
from fedsynsam.fl.checkpoint import load_evidence
from fedsynsam.fl.client import LocalRound
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.cosines import STEPS_IN, held_out_sample
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.flat import Batch, FlatModel
from fedsynsam.fl.labels import LabelMix
from fedsynsam.fl.matching import FlatLoss
from fedsynsam.fl.models import build_model
from fedsynsam.fl.partition import partition
from fedsynsam.fl.perturbation import FixedSet
from fedsynsam.fl.runfolder import load_config
from fedsynsam.fl.server import Server
from fedsynsam.fl.steps import Steps, draw
from fedsynsam.fl.streams import BATCHES, PARTITION, WEIGHTS, number, stream
from fedsynsam.fl.workers import Worker

CLIENTS = 6  # of each cohort, measured


class Probe(NamedTuple):
    """Local weights [P], the gradient of held-out data there, and that of the client's next batch."""

    round_number: int
    local: Tensor
    truth: Tensor
    own: Tensor


class Lab:
    """What a run left, and the local weights at which sets are measured."""

    def __init__(self, folder: Path) -> None:
        self.config = config = load_config(folder).replace(threads=1)
        self.dataset = load_dataset(config.dataset, config.data_dir)
        labels = self.dataset.y_train.numpy()
        self.parts = partition(
            config.partition, labels, config.clients, stream(config.seed, PARTITION),
            alpha=config.alpha, shards_per_client=config.shards_per_client,
        )  # fmt: skip
        self.module = build_model(
            config.model, self.dataset.image_shape, self.dataset.classes, number(config.seed, WEIGHTS)
        )
        self.loss, self.model = FlatLoss(self.module), FlatModel(self.module, torch.device("cpu"))
        label_mix = LabelMix.of(self.module, self.dataset.classes)
        assert label_mix is not None  # every model here ends in a linear layer
        self.label_mix = label_mix
        seen = load_evidence(folder / "checkpoint", config.synthetic_window)
        self.weights, self.payloads = seen.weights, seen.payloads
        self.updates = {
            number: [cast(Tensor, payload.decompress()) for payload in received]
            for number, received in seen.payloads.items()
        }
        self._mixes = dict[tuple[int, int], Tensor]()
        self.server = Server(config, self.weights[max(self.weights)])
        measured = range(config.synthetic_start + 5, config.rounds + 1, 5)
        self.probes = [probe for round_number in measured for probe in self._probes(round_number)]

    def gradient(self, weights: Tensor, batch: Batch) -> Tensor:
        """The gradient [P] of a batch, as a client computes it."""
        self.model.weights.copy_(weights[None])
        self.model.backward(batch)
        return self.model.gradient[0].clone()

    def _probes(self, round_number: int) -> list[Probe]:
        """Where some clients of the round would use a set.

        The clients' steps are perturbed along the gradient of real images, so that no lead is measured on its own path.
        """
        config, start = self.config.replace(local_steps=STEPS_IN), self.weights[round_number - 1]
        real, held_out = real_set(self.dataset, 5, config.seed), held_out_sample(self.dataset, config.seed)
        probes = []
        for client in self.server.cohort(round_number)[:CLIENTS]:
            rng = stream(config.seed, BATCHES, round_number, client)
            drawn = draw(self.parts[client], config.replace(local_steps=STEPS_IN + 1), rng)
            steps, last = Steps(self.dataset, [drawn[:-1]]), torch.from_numpy(drawn[-1])
            work = LocalRound(steps, FixedSet(real, 1.0), Correction())
            local = start + Worker(self.module, torch.device("cpu")).train(start, work, config)[0][0]
            own = self.gradient(local, (self.dataset.x_train[last], self.dataset.y_train[last]))
            probes.append(Probe(round_number, local, self.gradient(local, held_out), own))
        return probes

    def evidence(self, last: int, payloads: int = 4, recent: int = 0) -> Evidence:
        """What the server had after round `last`: so many payloads of a round, of all rounds or the `recent` ones."""
        kept, first = Evidence(window=self.config.synthetic_window), last - recent if recent else 0
        kept.weights = {r: w for r, w in self.weights.items() if first <= r <= last}
        kept.payloads = {r: p[:payloads] for r, p in self.payloads.items() if first <= r <= last}
        return kept

    def sender(self, round_number: int, place: int) -> int:
        """The client whose payload was kept at `place` in a round."""
        cohort, kept = self.server.cohort(round_number), len(self.payloads[round_number])
        return cohort[(round_number + place * len(cohort) // kept) % len(cohort)]

    def client_mix(self, round_number: int, place: int, last: int) -> Tensor:
        """A client's mix of labels as all its payloads until round `last` tell it together."""
        client = self.sender(round_number, place)
        if (client, last) not in self._mixes:
            mixes = [
                self.label_mix(update)
                for r, updates in self.updates.items() if r <= last
                for i, update in enumerate(updates) if self.sender(r, i) == client
            ]  # fmt: skip
            self._mixes[client, last] = torch.stack(mixes).mean(dim=0)
        return self._mixes[client, last]

    def true_mix(self, round_number: int, place: int) -> Tensor:
        """The mix of labels of the client whose payload was kept at `place` in a round."""
        client = self.sender(round_number, place)
        counts = torch.bincount(
            self.dataset.y_train[torch.from_numpy(self.parts[client])], minlength=self.dataset.classes
        )
        return counts / counts.sum()
