"""Measures what a run costs as its clients grow in number: `python -m benchmarks.growth --out FILE.csv`.

The cohort stays at 10 clients of the small CNN, a checkpoint is written in every round, and every client already holds
a residual when the first round begins. Each row is a process of its own; passes go through all sizes in turn, and the
best of them counts. `round_seconds` and `round_cpu_seconds` are medians over rounds, checkpoint included, of wall clock
and processor time, `fastest_seconds` is the shortest round: on a machine that others use, too, the last two say more.
`law_mb` = clients · P · 4 bytes is what residuals take: in memory (`residuals_mb`, measured) on host, in files
(`files_mb`) on disk. Draws FILE.png beside the CSV.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.fl.simulation import Simulation

from .provenance import provenance
from .rows import write_rows

COHORT = 10
WARM_UP = 4  # rounds not counted: the first checkpoint writes every residual
Row = dict[str, str]


def measure(clients: int, store: str, rounds: int, dataset: str) -> dict[str, object]:
    """Return the row of one run, in this process."""
    config = RunConfig(
        algorithm="fedavg", dataset=dataset, partition="iid", clients=clients, participation=COHORT / clients,
        rounds=rounds + WARM_UP + 1, local_steps=20, batch_size=5, eval_every=rounds + WARM_UP + 1, threads=1,
        checkpoint_every=1, residual_store=store, device="cpu",
    )  # fmt: skip
    wall, processor = list[float](), list[float]()
    memory: dict[str, float] = {}

    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(config, Path(folder) / "run")

        def fill(_: str) -> None:
            if memory:  # a run has several notes before its first round
                return
            if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
                libc.malloc_trim(0)  # what loading the data freed would be used again, and not be seen
            memory["before"] = resident_mb()
            size = simulation._server.state.weights.numel()
            for client in range(clients):
                simulation._records.owner[client] = 0
                simulation._records.keep([client], {client: {"residual": torch.full((size,), 1e-3)}}, 0)
            memory["after"], memory["law"] = resident_mb(), 4e-6 * size * clients

        def note_time(row: RoundMetrics) -> None:
            if row.round < config.rounds:  # the last round evaluates
                wall.append(time.perf_counter())
                processor.append(time.process_time())
            else:
                files = (Path(folder) / "run" / "checkpoint").glob("client-*")
                memory["files"] = sum(path.stat().st_size for path in files) / 1e6

        simulation.run(on_round=note_time, on_note=fill)
    return {
        "clients": clients,
        "store": store,
        "cohort": COHORT,
        "rounds": rounds,
        "round_seconds": statistics.median(steps(wall)),
        "fastest_seconds": min(steps(wall)),
        "round_cpu_seconds": statistics.median(steps(processor)),
        "law_mb": memory["law"],
        "residuals_mb": memory["after"] - memory["before"],
        "files_mb": memory["files"],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024,
    }


def steps(stamps: list[float]) -> list[float]:
    """Return the differences of successive stamps after the warm-up."""
    return [after - before for before, after in itertools.pairwise(stamps[WARM_UP - 1 :])]


def resident_mb() -> float:
    """Return the megabytes of memory that this process has now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1.024e-3


def best_of(rows: list[dict[str, object]]) -> dict[str, object]:
    """Return the first of several rows of one run, with the best times of all."""
    names = ("round_seconds", "fastest_seconds", "round_cpu_seconds")
    times = {key: min(float(str(row[key])) for row in rows) for key in names}
    return {**rows[0], **times}


def draw(rows: list[Row], path: Path) -> None:
    """Draw time and memory against the number of clients."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for store, colour in (("host", "#33658a"), ("disk", "#f6ae2d")):
        own = [row for row in rows if row["store"] == store]
        clients = [int(row["clients"]) for row in own]
        kinds = (("round", "o-", "median"), ("fastest", "o:", "fastest"), ("round_cpu", "o--", "CPU time"))
        for key, line, label in kinds:
            times = [1e3 * float(row[f"{key}_seconds"]) for row in own]
            left.plot(clients, times, line, color=colour, label=f"{store}, {label}", markersize=4)
        key = "residuals_mb" if store == "host" else "files_mb"
        label = "in memory (host)" if store == "host" else "in files (disk)"
        right.plot(clients, [max(1e-2, float(row[key])) for row in own], "o", color=colour, label=label)
    own = [row for row in rows if row["store"] == "host"]
    law = [float(row["law_mb"]) for row in own]
    right.plot([int(row["clients"]) for row in own], law, color="#222222", linewidth=0.8, label="clients · P · 4 bytes")
    right.set_yscale("log")
    for axes, label in ((left, "a round of 10 clients, ms"), (right, "residuals, MB")):
        axes.set_xscale("log")
        axes.set_xlabel("clients in total")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, ncols=2 if axes is left else 1, loc="upper left")
    left.set_ylim(0, 1.4 * left.get_ylim()[1])
    facts = f"{rows[0]['device']} · torch {rows[0]['torch']} · {rows[0]['commit']} · {rows[0]['date']}"
    figure.suptitle(f"Growth of a run with its clients\n{facts}", fontsize=8, x=0.01, ha="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--stores", nargs="+", default=["host", "disk"], choices=["host", "disk"])
    parser.add_argument("--rounds", type=int, default=24, help="rounds that are timed")
    parser.add_argument("--passes", type=int, default=2, help="runs of each size, in turn")
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--one", action="store_true", help="measure the first size and store here; print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.clients[0], options.stores[0], options.rounds, options.dataset)))
        return
    if options.out is None:
        parser.error("--out FILE.csv is needed")
    cases = [(store, clients) for store in options.stores for clients in options.clients]
    found: dict[tuple[str, int], list[dict[str, object]]] = {case: [] for case in cases}
    for _ in range(options.passes):
        for store, clients in cases:
            words = [sys.executable, "-m", "benchmarks.growth", "--one", "--clients", str(clients), "--stores", store]
            words += ["--rounds", str(options.rounds), "--dataset", options.dataset]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[store, clients].append(json.loads(done.stdout))
            print(done.stdout.strip(), flush=True)
    source = provenance(torch.device("cpu"))
    rows = [{k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in best_of(found[case]).items()} | source
            for case in cases]  # fmt: skip
    write_rows(rows, list(rows[0]), options.out)
    draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
