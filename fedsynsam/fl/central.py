"""What is done with the global weights alone, by rank 0 or in parts by all, and is then the same on every rank."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.distributed import Group
from fedsynsam.fl.evaluation import evaluate
from fedsynsam.fl.metrics import OnStep
from fedsynsam.fl.server import ServerState
from fedsynsam.fl.sharpness import Sharpness
from fedsynsam.fl.synthesis import learn
from fedsynsam.fl.synthetic import SyntheticSet
from fedsynsam.fl.tensorfile import pack, unpack
from fedsynsam.fl.training import finetune
from fedsynsam.fl.workers import Worker, WorkerPool

SHARPNESS_EVERY = 5  # evaluations: a measurement costs as much as several rounds


@dataclass(frozen=True)
class Central:
    """The synthetic set, fine-tuning on it, and evaluation, for the ranks of `group`."""

    config: RunConfig
    module: nn.Module
    dataset: Dataset
    device: torch.device
    pool: WorkerPool
    group: Group
    sharpness: Sharpness

    def learn(self, state: ServerState, watch: OnStep) -> tuple[SyntheticSet, float, float]:
        """The synthetic set learned from `state`, its matching loss, and the seconds that rank 0 took."""

        def work() -> bytes:
            assert state.evidence is not None
            began = time.perf_counter()
            synthetic, loss = learn(
                self.config,
                self.module,
                self.dataset,
                state.evidence,
                state.synthetic,
                state.round,
                watch,
                threads=self.pool.threads,
            )
            return pack(synthetic.tensors(), {"loss": loss, "seconds": round(time.perf_counter() - began, 4)})

        tensors, numbers = unpack(self.group.on_first(work), "the synthetic set", self.device)
        return SyntheticSet(**tensors), numbers["loss"], numbers["seconds"]

    def finetune(self, weights: Tensor, synthetic: SyntheticSet) -> Tensor:
        """Weights [P] after fine-tuning on the synthetic set, by rank 0 for every rank."""

        def tune(worker: Worker, learned: SyntheticSet) -> Tensor:
            return finetune(worker, weights, learned.batch, float(learned.log_rate.exp()), self.config.finetune_steps)

        def work() -> bytes:
            return pack({"weights": self.pool.map(tune, [synthetic])[0]})

        return unpack(self.group.on_first(work), "the fine-tuned weights", self.device)[0]["weights"]

    def evaluate(self, weights: Tensor, round_number: int) -> tuple[float, float, float | None]:
        """Accuracy and loss on the test set and, in every fifth evaluation and the last, the largest eigenvalue."""
        config = self.config
        accuracy, loss = evaluate(self.pool, weights, self.dataset, self.group)
        due = round_number % (SHARPNESS_EVERY * config.eval_every) == 0 or round_number == config.rounds
        if not (config.sharpness and due):
            return accuracy, loss, None
        found = self.group.on_first(lambda: json.dumps(self.sharpness.largest(weights)).encode())
        [largest] = json.loads(found)
        return accuracy, loss, largest
