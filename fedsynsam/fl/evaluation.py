"""Accuracy and loss on the test set, and the summary of a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.distributed import Group
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.fl.workers import Worker, WorkerPool

BATCH = 500


def evaluate(pool: WorkerPool, weights: Tensor, dataset: Dataset, group: Group) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of `weights` [P] on the test set, whose batches are dealt out over the ranks."""
    total = len(dataset.y_test)

    def count(worker: Worker, first: int) -> tuple[Tensor, Tensor]:
        chunk = slice(first, first + BATCH)
        worker.single.weights.copy_(weights.view(1, -1))
        return worker.single.count_and_loss((dataset.x_test[chunk], dataset.y_test[chunk]))

    def part_of(firsts: list[int]) -> list[tuple[int, float]]:
        # one wait for the device at the end, not one a batch
        return [(int(right), float(loss)) for right, loss in pool.map(count, firsts)]

    results = group.deal(list(range(0, total, BATCH)), part_of)
    return sum(right for right, _ in results) / total, sum(loss for _, loss in results) / total


def summarise(config: RunConfig, rounds: list[RoundMetrics], parameters: int) -> dict[str, Any]:
    """The contents of `summary.json`; `RunResult` lists them."""
    evaluated = [(row.round, row.test_accuracy) for row in rounds if row.test_accuracy is not None]
    from_round = config.rounds - math.ceil(config.rounds / 5)
    late = [accuracy for number, accuracy in evaluated if number >= from_round]
    uplink = sum(row.uplink_bytes for row in rounds)
    dense = 4 * parameters * config.cohort_size * len(rounds)
    return {
        "algorithm": config.algorithm,
        "compressor": config.compressor,
        "seed": config.seed,
        "rounds": len(rounds),
        "final_accuracy": float(np.mean(late)),
        "last_accuracy": evaluated[-1][1],
        "best_accuracy": max(accuracy for _, accuracy in evaluated),
        "uplink_bytes": uplink,
        "downlink_bytes": sum(row.downlink_bytes for row in rounds),
        "dense_uplink_bytes": dense,
        "uplink_ratio": dense / uplink,
        "parameters": parameters,
        "seconds": round(sum(row.seconds for row in rounds), 3),
        "sharpness": next((row.sharpness for row in reversed(rounds) if row.sharpness is not None), None),
    }
