"""How clients are trained: which engine, measured where the run asks for `auto`, and how a cohort is cut into groups.

| engine | clients at a time in a thread | a convolution is |
|---|---|---|
| `sequential` | one, in a flat model whose weights and gradients are written in place | our own, or the library's |
| `batched` | a group, as rows of a matrix [R, P] | a grouped convolution |
| `unfold` | a group | a matrix product of unfolded images |

The engines do the same arithmetic in another order: one local step agrees to float32 rounding. Only `sequential` gives
the same bits for every number of threads and processes, because a group's size may decide how a library sums.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from fedsynsam.fl.client import LocalRound
from fedsynsam.fl.config import ENGINES, RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.perturbation import LocalGradient
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.workers import Worker

Item = TypeVar("Item")
SECONDS = 0.3  # for measuring one engine, after a warm-up
MARGIN = 0.9  # another engine is taken if it needs less than this share of the sequential one's time
MEMORY = 0.4  # of a GPU's free memory that a group may take; groups of two sizes may be recorded, each with its own


@dataclass(frozen=True)
class Choice:
    """The engine of a run, the clients in a group at most, and a line that says why."""

    engine: str
    rows: int
    note: str


def groups(items: Sequence[Item], choice: Choice, threads: int) -> list[list[Item]]:
    """Cut the clients of a cohort into groups of nearly equal size: one each, or as few as threads and memory allow."""
    if choice.engine == "sequential":
        return [[item] for item in items]
    count = max(min(threads, len(items)), -(-len(items) // choice.rows))
    edges = [len(items) * part // count for part in range(count + 1)] if items else [0]
    return [list(items[first:last]) for first, last in itertools.pairwise(edges)]


def choose(config: RunConfig, module: nn.Module, dataset: Dataset, device: torch.device, threads: int) -> Choice:
    """The engine that `config` names or, for `auto`, the one whose local steps take the least time a client here.

    None is auto on CUDA and sequential on a CPU, where the same bits for every number of threads are worth more.
    """
    largest = max(1, -(-config.cohort_size // threads))
    engine = config.engine or ("auto" if device.type == "cuda" else "sequential")
    if engine == "sequential" or (engine == "auto" and largest == 1):
        return Choice("sequential", 1, "engine: sequential")
    if engine != "auto":
        return Choice(engine, _fitting(config, module, dataset, device, largest), f"engine: {engine}")
    times, fitting = dict[str, float](), 1
    for engine in ENGINES[1:]:
        count = 1
        if engine != "sequential":
            # a slow model is judged on few clients: the measurement is to take a second or two, not minutes
            affordable = max(2, int(SECONDS / times["sequential"]))
            fitting = _fitting(config, module, dataset, device, largest)
            count = min(fitting, affordable)
        times[engine] = _seconds(config, module, dataset, device, engine, count)
    best = min(times, key=lambda name: times[name])
    if times[best] > MARGIN * times["sequential"]:
        best = "sequential"
    measured = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in times.items())
    note = f"engine: {best} (measured, milliseconds a client and step: {measured})"
    return Choice(best, 1 if best == "sequential" else fitting, note)


def captures(config: RunConfig, device: torch.device) -> bool:
    """Whether local rounds are recorded as CUDA graphs: by default wherever there is CUDA."""
    return device.type == "cuda" and config.capture


def _work(config: RunConfig, dataset: Dataset, count: int, steps: int) -> LocalRound:
    """`steps` FedSAM steps of `count` clients on any examples: the arithmetic of a round."""
    width = min(config.batch_size, len(dataset.y_train))
    drawn = np.resize(np.arange(len(dataset.y_train)), (steps, width))
    return LocalRound(Steps(dataset, [drawn] * count), LocalGradient(), Correction())


def _seconds(
    config: RunConfig, module: nn.Module, dataset: Dataset, device: torch.device, engine: str, count: int
) -> float:
    """Time of a local step a client, the least of several."""
    worker = Worker(module, device, engine, capture=captures(config, device))
    start, work = flat_weights(module), _work(config, dataset, count, 1)
    resolved = config.replace(rho=0.05)

    def once() -> float:
        begun = time.perf_counter()
        worker.train(start, work, resolved)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    once()
    ends, least = time.perf_counter() + SECONDS, once()
    while time.perf_counter() < ends:
        least = min(least, once())
    return least / count


def _fitting(config: RunConfig, module: nn.Module, dataset: Dataset, device: torch.device, largest: int) -> int:
    """The clients of a group: `largest`, or fewer if a GPU's free memory would not hold them."""
    if device.type != "cuda" or largest == 1:
        return largest
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    worker = Worker(module, device, "batched")
    worker.train(flat_weights(module), _work(config, dataset, 2, 1), config.replace(rho=0.05))
    each = (torch.cuda.max_memory_allocated(device) - before) / 2
    return max(1, min(largest, int(MEMORY * torch.cuda.mem_get_info(device)[0] / max(each, 1.0))))
