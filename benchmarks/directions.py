"""Directions of several runs side by side: `python -m benchmarks.directions NAME=FOLDER … --out FOLDER`.

Each FOLDER holds finished runs, made with `--cosines`; of others `runs.csv` alone is written. `cosines.csv` has a row
for each evaluation: the cosines of the estimates with the gradient of held-out data, accuracy, and what learning the
synthetic set took so far; `runs.csv` a row for each run: means from round 50 on, final accuracy, and the share of the
time that learning took. `cosines.png` draws the synthetic set's cosine over rounds, a panel a compressor, a line a
seed; of one FOLDER alone, all estimates'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.rows import write_rows
from fedsynsam.report.figures import COLORS, STYLE
from fedsynsam.report.runs import Run, find_runs

FROM, GOAL = 50, 0.9
ESTIMATES = ("synthetic", "real", "drift", "local", "previous")


def evaluations(name: str, run: Run) -> list[dict[str, object]]:
    """The rows of `cosines.csv` of one run."""
    rows, seconds = [], 0.0
    for row in run.rounds:
        seconds += row.synthetic_seconds or 0.0
        if row.cosines:
            found = {key: row.cosines.get(key, "") for key in ESTIMATES}
            accuracy = "" if row.test_accuracy is None else f"{row.test_accuracy:.4f}"
            rows.append(
                {**_facts(name, run), "round": row.round, **found, "accuracy": accuracy, "learning": f"{seconds:.1f}"}
            )
    return rows


def totals(name: str, run: Run) -> dict[str, object]:
    """The row of `runs.csv` of one run. A run from before the time of learning was logged has none."""
    late = [row.cosines for row in run.rounds if row.cosines and row.round >= FROM]
    means = {}
    for key in ESTIMATES:
        values = [cosines[key] for cosines in late if key in cosines]
        means[key] = f"{np.mean(values):.4f}" if values else ""
    learning = sum(row.synthetic_seconds or 0.0 for row in run.rounds)
    whole = sum(row.seconds for row in run.rounds)
    learned = [cosines["synthetic"] for cosines in late if "synthetic" in cosines]
    return {
        **_facts(name, run),
        **means,
        "lowest": f"{min(learned):.4f}" if learned else "",
        "final_accuracy": f"{run.summary['final_accuracy']:.4f}",
        "learning_seconds": f"{learning:.1f}" if learning else "",
        "seconds": f"{whole:.1f}",
        "learning_share": f"{learning / whole:.3f}" if learning else "",
        **{key: run.config["versions"][key] for key in ("torch", "numpy", "python")},
    }


def _facts(name: str, run: Run) -> dict[str, object]:
    return {"runs": name, **{key: run.config[key] for key in ("compressor", "seed")}}


def draw(groups: dict[str, list[Run]]) -> Figure:
    """The synthetic set's cosine over rounds, or of one group every estimate's; that of real images faint."""
    lines = [(name, "synthetic", runs) for name, runs in groups.items()]
    if len(groups) == 1:
        lines = [(estimate, estimate, runs) for runs in groups.values() for estimate in ESTIMATES if estimate != "real"]
    compressors = list(dict.fromkeys(run.config["compressor"] for runs in groups.values() for run in runs))
    figure = Figure(figsize=(4.6 * len(compressors), 3.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(compressors), sharey=True))
    for axis, compressor in zip(axes, compressors, strict=True):
        for color, (name, estimate, runs) in zip(COLORS, lines, strict=False):
            for place, run in enumerate(run for run in runs if run.config["compressor"] == compressor):
                label = name if place == 0 else None
                axis.plot(*_curve(run, estimate), color=color, label=label, marker=".")
        for run in (run for runs in groups.values() for run in runs if run.config["compressor"] == compressor):
            axis.plot(*_curve(run, "real"), color="grey", alpha=0.4, linewidth=1)
        axis.plot([], [], color="grey", alpha=0.4, linewidth=1, label="as many real images")
        axis.axhline(GOAL, color="black", linewidth=0.8, linestyle=":")
        axis.set(xlabel="round", title=compressor, ylim=(None if len(groups) == 1 else 0.6, 1.0))
    axes[0].set_ylabel("cosine with the global gradient")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    return figure


def _curve(run: Run, estimate: str) -> tuple[list[int], list[float]]:
    points = [(row.round, row.cosines[estimate]) for row in run.rounds if row.cosines and estimate in row.cosines]
    return [round_number for round_number, _ in points], [value for _, value in points]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.directions", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("groups", nargs="+", metavar="NAME=FOLDER", help="a name, and the folder of its runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    options = parser.parse_args()
    groups = {}
    for text in options.groups:
        name, sign, folder = text.rpartition("=")
        if not sign or not name:
            parser.error(f"{text!r}: give NAME=FOLDER")
        groups[name] = find_runs(Path(folder))
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [(name, run) for name, members in groups.items() for run in members]
    points = [row for name, run in runs for row in evaluations(name, run)]
    sums = [totals(name, run) for name, run in runs]
    write_rows(sums, list(sums[0]), options.out / "runs.csv")
    if points:
        write_rows(points, list(points[0]), options.out / "cosines.csv")
        with matplotlib.rc_context(STYLE):
            draw(groups).savefig(options.out / "cosines.png", dpi=110, metadata={"Software": None})
    print(f"the files are in {options.out}")


if __name__ == "__main__":
    main()
