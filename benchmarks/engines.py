"""Seconds of a round in each engine and in an eager loop: `python -m benchmarks.engines --out FILE.csv`.

The work: FedAvg without compression, every client of the cohort takes `--local-steps` steps of 32 images, the updates
are averaged by examples. The eager loop is what people write: a deep copy of the model a client, torch.optim.SGD, an
average of state_dicts; its data lie on the device too. The engines are timed in whole rounds of the simulator, real
payloads included. ResNet-18 (GroupNorm) trains on random images of CIFAR-10's shape: what is seen changes no time. Of
each, the median over the timed rounds counts; a figure beside the CSV shows them in multiples of the eager loop.
"""

from __future__ import annotations

import argparse
import copy
import csv
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as functional

from benchmarks.provenance import provenance
from benchmarks.rows import write_rows
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.machine import choose_device, one_thread_each
from fedsynsam.fl.models import build_model
from fedsynsam.fl.partition import partition
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.steps import Steps, draw
from fedsynsam.fl.streams import BATCHES, PARTITION, WEIGHTS, number, stream

WARMUP = 2  # rounds: buffers, and recordings of CUDA graphs
EXAMPLES = 64  # of each client, where the images are random
GOALS = {("cuda", "cnn"): 10.0, ("cuda", "resnet18"): 3.0}  # times the eager loop, by the best engine
ENGINES = ("sequential", "batched", "unfold")
NAMES = {"cnn": "small CNN", "resnet18": "ResNet-18 (GroupNorm)"}


def config_of(model: str, cohort: int, options: argparse.Namespace, scratch: Path) -> RunConfig:
    """The work as a run: everybody takes part."""
    dataset = "fashion-mnist-subset"
    if model == "resnet18":
        dataset = str(scratch / f"{cohort}.npz")
        rng, count = np.random.default_rng(0), EXAMPLES * cohort
        images = rng.integers(0, 256, (count + 100, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count + 100) % 10
        np.savez(dataset, x_train=images[:count], y_train=labels[:count], x_test=images[count:], y_test=labels[count:])
    rounds = WARMUP + options.timed + 1
    return RunConfig(
        algorithm="fedavg", compressor="none", dataset=dataset, partition="iid", clients=cohort, participation=1.0,
        rounds=rounds, local_steps=options.local_steps, batch_size=32, model=model, eval_every=rounds,
        checkpoint_every=0, device=options.device, threads=options.threads,
    )  # fmt: skip


def simulated(config: RunConfig, engine: str) -> list[float]:
    """Seconds of each timed round in the simulator; the last round evaluates and does not count."""
    seconds: list[float] = []
    Simulation(config.replace(engine=engine)).run(on_round=lambda row: seconds.append(row.seconds))
    return seconds[WARMUP:-1]


def eager(config: RunConfig, threads: int) -> list[float]:
    """Seconds of each timed round of the eager loop, with this many PyTorch threads."""
    device = choose_device(config.device, None)
    data = load_dataset(config.dataset)
    parts = partition("iid", data.y_train.numpy(), config.clients, stream(config.seed, PARTITION))
    data = data.to(device)
    model = build_model(config.model, data.image_shape, data.classes, number(config.seed, WEIGHTS)).to(device)
    torch.set_num_threads(threads)
    seconds = []
    for round_number in range(1, config.rounds):
        begun = time.perf_counter()
        states = []
        for client, members in enumerate(parts):
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=config.lr)
            steps = Steps(data, [draw(members, config, stream(config.seed, BATCHES, round_number, client))])
            for step in range(len(steps)):
                optimizer.zero_grad()
                images, labels, _ = steps[step]
                functional.cross_entropy(local(images[0]), labels[0]).backward()
                optimizer.step()
            states.append(local.state_dict())
        total = sum(map(len, parts))
        shares = [len(members) / total for members in parts]
        model.load_state_dict(
            {key: sum(share * state[key] for share, state in zip(shares, states, strict=True)) for key in states[0]}
        )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return seconds[WARMUP:]


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(model: str, cohort: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model and cohort."""
    device = choose_device(options.device, None)
    candidates: dict[str, Callable[[RunConfig], list[float]]] = {"eager": lambda config: eager(config, 1)}
    if device.type == "cpu" and options.threads > 1:
        candidates[f"eager, {options.threads} threads"] = lambda config: eager(config, options.threads)
    candidates |= {engine: lambda config, engine=engine: simulated(config, engine) for engine in options.engines}
    rows = []
    with tempfile.TemporaryDirectory() as scratch, one_thread_each():
        config = config_of(model, cohort, options, Path(scratch))
        for name, run in candidates.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = run(config)
            rows.append(
                {
                    "model": model, "cohort": cohort, "engine": name, "local_steps": options.local_steps,
                    "batch_size": 32, "threads": options.threads if device.type == "cpu" else 1,
                    "rounds": len(seconds), "round_seconds": f"{statistics.median(seconds):.4g}",
                    "fastest_seconds": f"{min(seconds):.4g}", "peak_so_far_mib": f"{peak_bytes(device) / 2**20:.0f}",
                }
            )  # fmt: skip
            print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    loop = min(float(row["round_seconds"]) for row in rows if row["engine"].startswith("eager"))
    best = min(float(row["round_seconds"]) for row in rows if not row["engine"].startswith("eager"))
    for row in rows:
        row["times_eager"] = f"{loop / float(row['round_seconds']):.3f}"
        row["goal"] = row["met"] = ""
        if (goal := GOALS.get((device.type, model))) and float(row["round_seconds"]) == best:
            row |= {"goal": goal, "met": "yes" if loop / best >= goal else "no"}
    return rows


def draw_bars(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of speed in multiples of the eager loop, a panel a model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(4.8 * len(models), 3.4), layout="constrained", squeeze=False)
    colours = {"sequential": "#4269d0", "batched": "#efb118", "unfold": "#3ca951"}
    for axis, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row["model"] == model and row["engine"] in ENGINES]
        cohorts = list(dict.fromkeys(row["cohort"] for row in own))
        engines = [engine for engine in ENGINES if any(row["engine"] == engine for row in own)]
        for place, engine in enumerate(engines):
            speeds = {row["cohort"]: float(row["times_eager"]) for row in own if row["engine"] == engine}
            positions = [cohorts.index(cohort) + 0.27 * (place - (len(engines) - 1) / 2) for cohort in speeds]
            bars = axis.bar(positions, list(speeds.values()), 0.25, color=colours[engine], label=engine)
            axis.bar_label(bars, fmt="%.2g", fontsize=8)
        axis.axhline(1.0, color="#222222", linewidth=0.8)
        axis.set_xticks(range(len(cohorts)), [f"{cohort} clients" for cohort in cohorts])
        axis.set_xlim(-0.6, len(cohorts) - 0.4)
        axis.set_ylabel("speed of a round (eager loop: 1)")
        axis.set_title(NAMES.get(model, model), fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.15)
    handles = {label: bar for axis in axes[0] for bar, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    facts = " / ".join(dict.fromkeys(f"{row['device']} · torch {row['torch']} · {row['date']}" for row in rows))
    figure.suptitle(facts, fontsize=8, x=0.01, ha="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, writing the files anew after each model and cohort."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV file; rows of other models in it are kept")
    parser.add_argument("--models", nargs="+", default=["cnn"], choices=list(NAMES))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--cohorts", nargs="+", type=int, default=[10, 50, 100])
    parser.add_argument("--local-steps", type=int, default=20)
    parser.add_argument("--timed", type=int, default=7, help="rounds timed, default 7")
    parser.add_argument("--threads", type=int, default=2, help="threads on a CPU")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    if options.out.exists():
        with options.out.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["model"] not in options.models]
    where = provenance(choose_device(options.device, None))
    for model in options.models:
        for cohort in options.cohorts:
            rows += [{**row, **where} for row in measure(model, cohort, options)]
            write_rows(rows, list(rows[0]), options.out)
            draw_bars(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
