"""Where a round's time goes: `python -m benchmarks.anatomy --out FILE.csv`, with a picture beside the file.

Rounds of the small CNN under PyTorch's profiler, on one thread, so that parts add up to the whole: in the eager loop
that people write (a deep copy of the model a client, torch.optim.SGD, an average of state_dicts) and in this simulator,
whose local steps (batches gathered, passes, perturbations, steps) are one call and so one part.
Time inside PyTorch's operators goes to the operator's part, unless it is spent in a named piece of work (gathering
batches, the optimizer's step, compression and bytes, copies of models); the rest is Python's. The profiler itself makes
operators slower, most the small ones: shares are of the profiled time, `bare_ms` is the time without it, a median.
The cases take turns, so that a load on the machine falls on all.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.peers.job import Job, sgd_steps
from benchmarks.peers.run_eager import Loop
from benchmarks.provenance import provenance
from benchmarks.rows import write_rows
from fedsynsam.fl import client, server, training
from fedsynsam.fl.machine import one_thread_each
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.workers import WorkerPool
from fedsynsam.ops.network import SmallNetwork

COHORT, WARMUP, TIMED, TURNS = 10, 2, 4, 3
PARTS = {
    "local steps by our kernels": "#1b3a8f",
    "convolutions": "#4269d0",
    "matrix products": "#97bbf5",
    "pooling": "#3ca951",
    "activations, loss": "#6cc5b0",
    "gathering batches": "#efb118",
    "perturbation and step": "#ff725c",
    "compression, bytes, sum": "#a463f2",
    "copies of the model": "#9c6b4e",
    "other operators": "#bbbbbb",
    "Python": "#555555",
}
WORDS = {
    "convolutions": ("conv",),
    "matrix products": ("mm", "linear", "addmm", "bmm"),
    "pooling": ("pool",),
    "activations, loss": ("relu", "threshold", "clamp_min", "softmax", "nll_loss", "cross_entropy"),
}
SYNTHETIC = {"synthetic_start": 1, "synthetic_every": 0, "synthetic_steps": 20, "synthetic_segment": 1}
CASES: dict[str, dict[str, Any] | None] = {
    "eager loop, FedAvg": None,
    "FedAvg, none": {"algorithm": "fedavg", "compressor": "none"},
    "FedAvg, topk:0.01": {"algorithm": "fedavg", "compressor": "topk:0.01"},
    "FedSAM, topk:0.01": {"algorithm": "fedsam", "compressor": "topk:0.01"},
    "FedSynSAM, refresh=round": {"algorithm": "fedsynsam", "synthetic_refresh": "round", **SYNTHETIC},
    "FedSynSAM": {"algorithm": "fedsynsam", **SYNTHETIC},
}


def part_of(event: Any) -> str:
    """The part that an event's own time belongs to: that of the nearest named piece of work, else the operator's."""
    ancestor = event
    while ancestor is not None:
        if ancestor.name in PARTS:
            return ancestor.name
        ancestor = ancestor.cpu_parent
    word = event.name.lower()
    return next((part for part, words in WORDS.items() if any(each in word for each in words)), "other operators")


def parts_of(events: Sequence[Any], wall: float) -> dict[str, float]:
    """Seconds of each part; `Python` is what no event accounts for."""
    seconds = Counter(dict.fromkeys(PARTS, 0.0))
    for event in events:
        seconds[part_of(event)] += 1e-6 * event.self_cpu_time_total
    seconds["Python"] = max(0.0, wall - sum(seconds.values()))
    return dict(seconds)


def named(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a piece of work of that name."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with record_function(part):
            return function(*arguments, **options)

    return run


def in_this_thread(pool: WorkerPool, function: Callable[..., Any], items: list[Any]) -> list[Any]:
    """`WorkerPool.map` without its threads, which a profile does not see."""
    worker = pool.idle.get()
    try:
        return [function(worker, item) for item in items]
    finally:
        pool.idle.put(worker)


@contextlib.contextmanager
def pieces_named() -> Iterator[None]:
    """Inside, the simulator's pieces of work carry their names in a profile."""
    pieces = [
        ("local steps by our kernels", client, "local_steps"),
        ("local steps by our kernels", SmallNetwork, "gradient"),
        ("gathering batches", Steps, "__getitem__"),
        ("gathering batches", training, "draw"),
        ("compression, bytes, sum", training, "send"),
        ("compression, bytes, sum", server, "aggregate"),
        ("perturbation and step", torch.optim.SGD, "step"),
        ("copies of the model", Loop, "copy"),
        ("copies of the model", Loop, "average"),
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(WorkerPool, "map", in_this_thread))
        for part, owner, name in pieces:
            stack.enter_context(mock.patch.object(owner, name, named(part, getattr(owner, name))))
        yield


class Clock:
    """Times the rounds of several runs, half of them under the profiler."""

    def __init__(self) -> None:
        self.bare: list[float] = []
        self.walls: list[float] = []
        self.parts: list[dict[str, float]] = []
        self._profile: profile | None = None

    def start(self, rounds: int) -> None:
        """To be called before each run of so many rounds."""
        self._last, self._rounds = rounds - 1, 0
        self._begun = time.perf_counter()

    def round_done(self) -> None:
        """To be called after each round."""
        wall = time.perf_counter() - self._begun
        if self._rounds > self._last - 1:
            return  # the last round evaluates
        if self._profile is not None:
            self._profile.stop()
            self.walls.append(wall)
            self.parts.append(parts_of(self._profile.events() or [], wall))
            self._profile = None
        elif self._rounds >= WARMUP:
            self.bare.append(wall)
        self._rounds += 1
        if WARMUP <= self._rounds < self._last and self._rounds % 2:
            self._profile = profile(activities=[ProfilerActivity.CPU])
            self._profile.start()
        self._begun = time.perf_counter()


def simulated(job: Job, options: dict[str, Any], clock: Clock) -> None:
    """Run the simulator's rounds; the set of FedSynSAM is learned in a warm-up round."""
    Simulation(job.config().replace(**options)).run(on_round=lambda _: clock.round_done())


def eager(job: Job, clock: Clock) -> None:
    """Run the rounds of the eager loop."""
    loop = Loop(job)
    for round_number in range(1, job.rounds + 1):
        loop.round(round_number, sgd_steps)
        clock.round_done()


def measure() -> list[dict[str, Any]]:
    """A row for each case and part."""
    job = Job(COHORT, WARMUP, TIMED, 1, Path())
    clocks = {case: Clock() for case in CASES}
    with one_thread_each(), pieces_named():
        for _ in range(TURNS):
            for case, options in CASES.items():
                clocks[case].start(job.rounds)
                if options is None:
                    eager(job, clocks[case])
                else:
                    simulated(job, options, clocks[case])
    rows = []
    for case, clock in clocks.items():
        bare, wall = statistics.median(clock.bare), sum(clock.walls)
        for part in PARTS:
            share = sum(parts[part] for parts in clock.parts) / wall
            rows.append({"case": case, "part": part, "share": f"{share:.4f}", "bare_ms": f"{1e3 * bare:.1f}"})
        print(case, f"{1e3 * bare:.1f} ms a round", flush=True)
    return rows


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A bar a case, as long as its round, cut into its parts."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(cases) + 1.9), layout="constrained")
    lefts = [0.0] * len(cases)
    for part, colour in PARTS.items():
        own = {row["case"]: row for row in rows if row["part"] == part}
        widths = [float(own[case]["share"]) * float(own[case]["bare_ms"]) for case in cases]
        if max(widths) > 0:
            axis.barh(cases, widths, left=lefts, color=colour, label=part, height=0.7)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel(f"milliseconds of a round ({COHORT} clients, one thread)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    facts = f"{rows[0]['device']} · torch {rows[0]['torch']} · {rows[0]['commit']} · {rows[0]['date']}"
    axis.set_title(facts, fontsize=8, loc="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case; write the CSV and the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.anatomy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    options = parser.parse_args(arguments)
    where = provenance(torch.device("cpu"))
    rows = [{**row, **where} for row in measure()]
    write_rows(rows, list(rows[0]), options.out)
    draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
