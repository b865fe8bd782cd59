"""What every framework is asked to do, from the same seed: the same weights, cohorts and batches, in the same order.

Batches come from the simulator's own function everywhere, so that data loading is no part of the comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import nn

from benchmarks import workload
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.flat import Batch
from fedsynsam.fl.models import build_model
from fedsynsam.fl.steps import Steps, draw
from fedsynsam.fl.streams import BATCHES, COHORT, WEIGHTS, number, stream


@dataclass(frozen=True)
class Job:
    """`warmup` + `timed` + 1 rounds: the last one, in which some frameworks evaluate, is not timed."""

    cohort: int
    warmup: int
    timed: int
    cores: int
    result: Path
    finished: list[float] = field(default_factory=list)  # when each round was over, in seconds

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> Job:
        """The job that the command line asks for."""
        parser = argparse.ArgumentParser(description="One framework's run, started by benchmarks/cases/round.py.")
        for name in ("cohort", "warmup", "timed", "cores"):
            parser.add_argument(f"--{name}", type=int, required=True)
        parser.add_argument("--result", type=Path, required=True)
        return cls(**vars(parser.parse_args(arguments)))

    def arguments(self) -> list[str]:
        """The inverse of `parse`."""
        names = ("cohort", "warmup", "timed", "cores", "result")
        return [text for name in names for text in (f"--{name}", str(getattr(self, name)))]

    @property
    def rounds(self) -> int:
        """All rounds."""
        return self.warmup + self.timed + 1

    def config(self) -> RunConfig:
        """The same job in the simulator's terms."""
        return RunConfig(
            algorithm="fedavg",
            compressor="none",
            dataset=workload.DATASET,
            alpha=workload.ALPHA,
            clients=workload.CLIENTS,
            participation=self.cohort / workload.CLIENTS,
            rounds=self.rounds,
            local_steps=workload.LOCAL_STEPS,
            batch_size=workload.BATCH_SIZE,
            lr=workload.LR,
            model=workload.MODEL,
            seed=workload.SEED,
            device="cpu",
            threads=self.cores,
            eval_every=self.rounds,
            checkpoint_every=0,
        )

    def clients(self, round_number: int) -> list[int]:
        """The cohort of a round, counted from 1."""
        rng = stream(workload.SEED, COHORT, round_number)
        return sorted(rng.choice(workload.CLIENTS, self.cohort, replace=False).tolist())

    def batches(self, round_number: int, client: int) -> list[Batch]:
        """The client's batches in a round."""
        rng = stream(workload.SEED, BATCHES, round_number, client)
        steps = Steps(workload.data(), [draw(workload.parts()[client], self.config(), rng)])
        return [(steps[number].images[0], steps[number].labels[0]) for number in range(len(steps))]

    def round_done(self) -> None:
        """Note that a round is over."""
        self.finished.append(time.perf_counter())

    def report(self, accuracy: float, loss: float, **versions: str) -> None:
        """Write the result: seconds of each timed round, and what the final weights reach on the test set."""
        marks = self.finished[self.warmup - 1 : self.warmup + self.timed]
        seconds = [after - before for before, after in itertools.pairwise(marks)]
        values = {"seconds": seconds, "test_accuracy": accuracy, "test_loss": loss, "versions": versions}
        temporary = self.result.with_name(self.result.name + ".part")
        temporary.write_text(json.dumps(values), encoding="utf-8")
        os.replace(temporary, self.result)


def new_model() -> nn.Module:
    """The model with the weights that every framework starts from."""
    dataset = workload.data()
    return build_model(workload.MODEL, dataset.image_shape, dataset.classes, number(workload.SEED, WEIGHTS))


def examples(client: int) -> int:
    """How many examples a client holds: its weight in the average."""
    return len(workload.parts()[client])


def sgd_steps(model: nn.Module, steps: list[Batch]) -> None:
    """A client's local training as people write it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.LR)
    for images, labels in steps:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def test(model: nn.Module) -> tuple[float, float]:
    """Accuracy and mean cross-entropy on the test set."""
    dataset = workload.data()
    logits = model(dataset.x_test[:])
    right = (logits.argmax(dim=1) == dataset.y_test).float().mean()
    return float(right), float(functional.cross_entropy(logits, dataset.y_test))
