"""The example app before and after, in Flower: bytes on the wire of two SuperNodes, and accuracies in its simulation.

Run by a Python that has Flower: `bash .ci/flower-environment FOLDER`, then `FOLDER/bin/python -m benchmarks.flower
--out benchmarks/results/flower`; interrupted, it goes on from the runs that it has. `wire.csv` has, for a model and a
spec, the bytes that the TCP streams between a SuperNode and the SuperLink carried; `accuracy.csv` the test accuracy
after each round, for each spec and seed.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.flower.processes import SuperLink
from benchmarks.provenance import ROOT, provenance
from benchmarks.rows import write_rows

EXAMPLES = ROOT / "examples" / "flower"
SPECS = ("", "quantize:4", "topk:0.01", "topk:0.01+quantize:4")  # "": the app before, without us
WIRE = [("cnn", spec) for spec in SPECS] + [("wide", spec) for spec in ("", "topk:0.01")]
ALONE = "Flower alone"
ALGORITHMS = {"before": "FedAvg", "after": "FedAvg", "fedsynsam": "FedSynSAM"}
SIMULATED_NODES = 10
LIMIT = 1200.0
Row = dict[str, Any]


def prepare(app: str, spec: str, folder: Path) -> Path:
    """A copy of the example app with `spec` in the place of the one that it names."""
    target = folder / "app"
    shutil.copytree(EXAMPLES / app, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in target.rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace('"topk:0.01"', f'"{spec}"'), encoding="utf-8")
    return target


def measure_wire(model: str, spec: str, rounds: int) -> Row:
    """Bytes a node and round of a deployment with two SuperNodes, everything of the run included, and its seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        app, result = prepare("after" if spec else "before", spec, folder), folder / "result.json"
        config = {"model": model, "rounds": rounds, "partitions": 2, "result": str(result)}
        with SuperLink(folder / "link") as link:
            for partition in (0, 1):
                link.start_node(partition, 2)
            begun = time.perf_counter()
            accuracies = link.wait(link.submit(app, config), result, LIMIT)
            seconds = time.perf_counter() - begun
            ups = [proxy.up for proxy in link.proxies.values()]
            downs = [proxy.down for proxy in link.proxies.values()]
    parameters = {"cnn": 37_610, "wide": 7_950_010}[model]
    return {
        "model": model, "parameters": parameters, "dense_bytes": 4 * parameters, "spec": spec or ALONE,
        "nodes": 2, "rounds": rounds, "local_steps": 20,
        "up_bytes_a_round": round(statistics.fmean(ups) / rounds),
        "down_bytes_a_round": round(statistics.fmean(downs) / rounds),
        "seconds": f"{seconds:.1f}", "accuracy": f"{accuracies[str(rounds)]:.4f}",
    }  # fmt: skip


def measure_accuracy(app: str, spec: str, seed: int, rounds: int) -> list[Row]:
    """Test accuracy after each round of Flower's simulation with ten nodes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy, result = prepare(app, spec, folder), folder / "result.json"
        config = {"rounds": rounds, "partitions": SIMULATED_NODES, "seed": seed, "result": str(result)}
        with SuperLink(folder / "link", simulated=True) as link:
            federation = f"num-supernodes={SIMULATED_NODES} client-resources-num-cpus=1"
            accuracies = link.wait(link.submit(copy, config, federation), result, LIMIT)
    common = {"algorithm": ALGORITHMS[app], "spec": spec or ALONE, "nodes": SIMULATED_NODES, "seed": str(seed)}
    return [{**common, "round": number, "accuracy": f"{value:.4f}"} for number, value in accuracies.items()]


def read(path: Path) -> list[Row]:
    """The rows that there are."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wire_table(rows: Sequence[Row]) -> str:
    """The table of the wire in Markdown."""
    lines = ["| model | replies | up, bytes a round | down, bytes a round | up, times less |", "|---|---|---|---|---|"]
    plain = {row["model"]: int(row["up_bytes_a_round"]) for row in rows if row["spec"] == ALONE}
    for row in rows:
        up, down = int(row["up_bytes_a_round"]), int(row["down_bytes_a_round"])
        ratio = f"{plain[row['model']] / up:.1f}" if row["model"] in plain else ""
        lines.append(f"| {row['model']} | {row['spec']} | {up:,} | {down:,} | {ratio} |")
    return "\n".join(lines)


def accuracy_table(rows: Sequence[Row]) -> str:
    """The table of the last round's accuracies in Markdown, mean ± deviation over seeds."""
    last = max(int(row["round"]) for row in rows)
    lines = [f"| algorithm | replies | accuracy after {last} rounds | seeds |", "|---|---|---|---|"]
    for algorithm, spec in dict.fromkeys((row["algorithm"], row["spec"]) for row in rows):
        mine = [row for row in rows if (row["algorithm"], row["spec"], int(row["round"])) == (algorithm, spec, last)]
        values = [100 * float(row["accuracy"]) for row in mine]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {algorithm} | {spec} | {statistics.fmean(values):.1f}{spread} % | {len(values)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flower", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for wire.csv and accuracy.csv")
    parser.add_argument("--parts", nargs="+", choices=["wire", "accuracy"], default=["wire", "accuracy"])
    parser.add_argument("--wire-rounds", type=int, default=3, help="of the deployment")
    parser.add_argument("--rounds", type=int, default=30, help="of the simulation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    source = {**provenance(torch.device("cpu")), "flwr": version("flwr")}
    if "wire" in options.parts:
        path, rows = options.out / "wire.csv", read(options.out / "wire.csv")
        for model, spec in WIRE:
            if not any((row["model"], row["spec"]) == (model, spec or ALONE) for row in rows):
                rows.append({**measure_wire(model, spec, options.wire_rounds), **source})
                write_rows(rows, list(rows[0]), path)
        print(wire_table(rows), flush=True)
    if "accuracy" in options.parts:
        path, rows = options.out / "accuracy.csv", read(options.out / "accuracy.csv")
        for seed in options.seeds:
            for app, spec in [*(("after" if spec else "before", spec) for spec in SPECS), ("fedsynsam", "topk:0.01")]:
                wanted = (ALGORITHMS[app], spec or ALONE, str(seed))
                if not any((row["algorithm"], row["spec"], row["seed"]) == wanted for row in rows):
                    rows += [{**row, **source} for row in measure_accuracy(app, spec, seed, options.rounds)]
                    write_rows(rows, list(rows[0]), path)
        print(accuracy_table(rows))


if __name__ == "__main__":
    main()
