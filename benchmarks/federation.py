"""What federation costs beyond its arithmetic: `python -m benchmarks.federation --out FILE.csv`.

A round of the simulator (batches gathered, perturbed steps, compression, encoding, decoding, aggregation; no
evaluation) beside the bare time: the forward and backward passes of the same clients on the same batches, one for each
local step, by the same threads, and nothing else. They are made as the simulator makes them, and by PyTorch alone.
After each round both are timed, so that a load on the machine falls on all; `ratio` is the median over rounds of a
round's time to that of the simulator's passes beside it, and `low` and `high` its quartiles, `to_pytorch` the median
against PyTorch's, and `met` says whether the latter is within the goal, `met_by_own` whether `ratio` is. Learning the
synthetic set is not counted. `gradients` counts the passes of the round itself, forward and backward, for each local
step. `--presets` measures every preset in the place of those with goals.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from benchmarks import workload
from benchmarks.peers.job import Job, new_model
from benchmarks.provenance import provenance
from benchmarks.rows import write_rows
from fedsynsam.fl import client
from fedsynsam.fl.algorithm import PRESETS
from fedsynsam.fl.flat import Batch, FlatModel
from fedsynsam.fl.machine import one_thread_each
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.workers import Worker, WorkerPool
from fedsynsam.ops.backend import use_backend
from fedsynsam.ops.local_steps import Source, StoredBatches
from fedsynsam.ops.network import SmallNetwork

WARMUP = 3


@dataclass(frozen=True)
class Case:
    """A configuration, and the largest ratio allowed."""

    algorithm: str
    compressor: str
    goal: float | None
    options: dict[str, Any] = field(default_factory=dict)


# The set is learned before the second round, and kept.
SYNTHETIC = {"synthetic_start": 1, "synthetic_every": 0, "synthetic_steps": 20, "synthetic_segment": 1}
PER_ROUND = {**SYNTHETIC, "synthetic_refresh": "round"}
CASES = (
    Case("fedavg", "none", 1.15),
    Case("fedavg", "topk:0.01", 1.15),
    Case("fedsam", "topk:0.01", 2.15),
    Case("fedsynsam", "topk:0.01", 2.3, PER_ROUND),
    Case("fedsynsam", "topk:0.01", 2.3, {**PER_ROUND, "beta": 0.5}),
    Case("fedsynsam", "topk:0.01", None, {**SYNTHETIC, "synthetic_refresh": "step"}),
)
PRESET_CASES = tuple(
    Case(name, "topk:0.01", None, SYNTHETIC if preset.learns_a_set else {}) for name, preset in PRESETS.items()
)


class Bare:
    """The passes alone, by as many threads as the simulator's; `backend` "reference" makes PyTorch compute them."""

    def __init__(self, job: Job, backend: str = "cpu") -> None:
        self._job = job
        with use_backend(backend):
            self._pool = WorkerPool(lambda: Worker(new_model(), torch.device("cpu")), job.cores)

    def seconds(self, round_number: int) -> float:
        """Wall time of a round's passes; its batches are gathered before."""
        batches = [self._job.batches(round_number, client) for client in self._job.clients(round_number)]
        started = time.perf_counter()
        self._pool.map(self._passes, batches)
        return time.perf_counter() - started

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    @staticmethod
    def _passes(worker: Worker, steps: list[Batch]) -> None:
        for batch in steps:
            worker.single.backward(batch)


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count the passes that models make; the function given tells how many there were since it was last called."""
    passes: SimpleQueue[int] = SimpleQueue()
    method, steps = FlatModel._backward, client.local_steps

    def call(model: FlatModel, *batch: Any) -> torch.Tensor:
        passes.put(1)
        return method(model, *batch)

    def call_steps(
        network: SmallNetwork, weights: torch.Tensor, batches: StoredBatches, source: Source, **options: Any
    ) -> torch.Tensor:
        passes.put(len(batches.indices) * (1 + source.own + (source.shared is not None)))
        return steps(network, weights, batches, source, **options)

    def since() -> int:
        return sum(passes.get() for _ in range(passes.qsize()))

    FlatModel._backward = call  # type: ignore[method-assign]
    client.local_steps = call_steps
    try:
        yield since
    finally:
        FlatModel._backward = method  # type: ignore[method-assign]
        client.local_steps = steps


def measure(case: Case, cohort: int, timed: int, cores: int) -> dict[str, Any]:
    """Return the row of one case."""
    job = Job(cohort, WARMUP, timed, cores, Path())
    config = job.config().replace(algorithm=case.algorithm, compressor=case.compressor, **case.options)
    rounds, bare, pytorch, gradients = list[float](), list[float](), list[float](), 0
    passes, theirs = Bare(job), Bare(job, "reference")

    def watch(metrics: RoundMetrics) -> None:
        nonlocal gradients
        gradients = since()
        if WARMUP < metrics.round <= WARMUP + timed:  # the last round evaluates
            rounds.append(metrics.seconds)
            bare.append(passes.seconds(metrics.round))
            pytorch.append(theirs.seconds(metrics.round))
            since()

    with one_thread_each(), counted() as since:
        try:
            for each in (passes, theirs):
                each.seconds(1)
            Simulation(config).run(on_round=watch)
        finally:
            passes.close()
            theirs.close()
    low, ratio, high = statistics.quantiles([ours / least for ours, least in zip(rounds, bare, strict=True)], n=4)
    to_pytorch = statistics.median([ours / least for ours, least in zip(rounds, pytorch, strict=True)])
    return {
        "algorithm": case.algorithm,
        "compressor": case.compressor,
        "options": " ".join(f"{key}={value}" for key, value in case.options.items() if key not in SYNTHETIC),
        "cohort": cohort,
        "local_steps": workload.LOCAL_STEPS,
        "batch_size": workload.BATCH_SIZE,
        "rounds": timed,
        "gradients": f"{gradients / (cohort * workload.LOCAL_STEPS):.2f}",
        "round_seconds": f"{statistics.median(rounds):.4f}",
        "bare_seconds": f"{statistics.median(bare):.4f}",
        "pytorch_seconds": f"{statistics.median(pytorch):.4f}",
        "ratio": f"{ratio:.3f}",
        "low": f"{low:.3f}",
        "high": f"{high:.3f}",
        "to_pytorch": f"{to_pytorch:.3f}",
        "goal": "" if case.goal is None else case.goal,
        "met": "" if case.goal is None else "yes" if to_pytorch <= case.goal else "no",
        "met_by_own": "" if case.goal is None else "yes" if ratio <= case.goal else "no",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case and write the CSV."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.federation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--presets", action="store_true", help="every preset in the place of the cases with goals")
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument("--timed", type=int, default=40, help="rounds timed of each case, default 40")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.timed < 2:
        parser.error(f"--timed {options.timed}: quartiles need at least 2 rounds")
    rows = []
    for case in PRESET_CASES if options.presets else CASES:
        rows.append(measure(case, options.cohort, options.timed, options.cores))
        print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    where = {**provenance(torch.device("cpu")), "cores": options.cores}
    write_rows([{**row, **where} for row in rows], [*rows[0], *where], options.out)


if __name__ == "__main__":
    main()
