"""Times the same federated rounds in this simulator, in an eager loop, in Flower and in pfl, each in its own process.

`bash benchmarks/peers/setup.sh` makes the environments of Flower and pfl; then
`python -m benchmarks.cases.round --out FILE`. Not a case of `python -m benchmarks`, which times operations.
The repetitions are interleaved (A B C D A B C D ...) and the fastest of each counts, so that a passing load on the
machine falls on no framework alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import workload
from benchmarks.peers.job import Job
from benchmarks.peers.memory import run
from benchmarks.provenance import ROOT, provenance
from benchmarks.rows import write_rows

OWN = ("fedsynsam", "fedsynsam-ranks")  # threads of one process, and processes started by torchrun, as pfl's are
PEERS = (*OWN, "eager", "flower", "pfl")
GOALS = {"eager": 1.0, "flower": 3.0, "pfl": 1.5}  # times faster than it
WARMUP = 3
LIMIT = 900.0  # seconds for one repetition


def command(peer: str, folder: Path, cores: int) -> list[str]:
    """The command line of a peer, without the job's arguments."""
    module = f"benchmarks.peers.run_{peer.removesuffix('-ranks')}"
    python = str(folder / peer / "bin/python") if peer in ("flower", "pfl") else sys.executable
    if peer in ("pfl", "fedsynsam-ranks") and cores > 1:
        return [python, "-m", "torch.distributed.run", f"--nproc-per-node={cores}", "-m", module]
    return [python, "-m", module]


def repetition(peer: str, cohort: int, options: argparse.Namespace) -> dict[str, Any]:
    """The result of one process: what `Job.report` wrote, and `peak_bytes`."""
    words = command(peer, options.environments, options.cores)
    if not Path(words[0]).exists():
        raise SystemExit(f"{peer}: {words[0]} is missing; run bash benchmarks/peers/setup.sh {options.environments}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        job = Job(cohort, WARMUP, options.timed, options.cores, scratch / "result.json")
        own = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_HOME": str(scratch / "flwr")}
        # a process of these trains on one core; several threads in each would fight over them
        own |= {"OMP_NUM_THREADS": "1"} if peer in ("flower", "pfl", "fedsynsam-ranks") else {}
        environment = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
        cores = sorted(os.sched_getaffinity(0))[: options.cores]
        status, peak = run([*words, *job.arguments()], environment, scratch / "log", cores, LIMIT)
        if status or not job.result.exists():
            tail = (scratch / "log").read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SystemExit(f"{peer}: exit status {status}\n{tail}")
        return {**json.loads(job.result.read_text(encoding="utf-8")), "peak_bytes": peak}


def summary(peer: str, cohort: int, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of one peer and size: the fastest repetition, and the rounds per second of them all."""
    speeds = [len(result["seconds"]) / sum(result["seconds"]) for result in results]
    best = results[speeds.index(max(speeds))]
    return {
        "peer": peer,
        "versions": " ".join(f"{name}={value}" for name, value in best["versions"].items()),
        "model": workload.MODEL,
        "dataset": workload.DATASET,
        "clients": workload.CLIENTS,
        "alpha": workload.ALPHA,
        "cohort": cohort,
        "local_steps": workload.LOCAL_STEPS,
        "batch_size": workload.BATCH_SIZE,
        "rounds_timed": len(best["seconds"]),
        "rounds_per_second": f"{max(speeds):.4g}",
        "repetitions": " ".join(f"{speed:.4g}" for speed in speeds),
        "fastest_round_seconds": f"{min(min(result['seconds']) for result in results):.4g}",
        "peak_rss_mib": f"{max(result['peak_bytes'] for result in results) / 2**20:.0f}",
        "test_accuracy": f"{best['test_accuracy']:.4f}",
        "test_loss": f"{best['test_loss']:.5f}",
    }


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Add how many times faster fedsynsam is than each peer of the same cohort, and whether the faster way does it."""
    for row in rows:
        speeds = {one["peer"]: float(one["rounds_per_second"]) for one in rows if one["cohort"] == row["cohort"]}
        times = {own: speeds[own] / speeds[row["peer"]] for own in OWN if own in speeds}
        if row["peer"] in GOALS and times:
            goal = GOALS[row["peer"]]
            row |= {f"{own}_times_faster": f"{value:.3f}" for own, value in times.items()}
            row |= {"goal": goal, "met": "yes" if max(times.values()) >= goal else "no"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.cases.round", description=__doc__.split("\n")[0])
    result.add_argument("--out", type=Path, required=True, help="CSV file")
    result.add_argument("--environments", type=Path, default=ROOT / ".ci/work/peers", help="what setup.sh made")
    result.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    result.add_argument("--cohorts", nargs="+", type=int, choices=workload.COHORTS, default=list(workload.COHORTS))
    result.add_argument("--cores", type=int, default=2)
    result.add_argument("--repeat", type=int, default=3, help="repetitions, interleaved; the fastest counts")
    result.add_argument("--timed", type=int, default=10, help="rounds timed in a repetition, default 10")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = parser().parse_args(arguments)
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(options.repeat):
        for cohort in options.cohorts:
            for peer in options.peers:
                result = repetition(peer, cohort, options)
                results.setdefault((peer, cohort), []).append(result)
                seconds = sum(result["seconds"]) / len(result["seconds"])
                head = f"{number + 1}, load {os.getloadavg()[0]:.1f}: cohort {cohort:<4}{peer:<12}"
                print(f"{head}{seconds:8.3f} s a round", flush=True)
    order = [(peer, cohort) for cohort in options.cohorts for peer in options.peers]
    rows = [summary(peer, cohort, results[peer, cohort]) for peer, cohort in order]
    compare(rows)
    where = {**provenance(torch.device("cpu")), "cores": options.cores}
    fields = [*dict.fromkeys(key for row in rows for key in row), *where]
    write_rows([{**row, **where} for row in rows], fields, options.out)
    for row in rows:
        print(
            *(f"{key}={row.get(key, '')}" for key in ("peer", "cohort", "rounds_per_second", "peak_rss_mib")), end=" "
        )
        print(
            *(
                f"{key}={row.get(key, '')}"
                for key in ("test_accuracy", "test_loss", *(f"{own}_times_faster" for own in OWN), "met")
            )
        )


if __name__ == "__main__":
    main()
