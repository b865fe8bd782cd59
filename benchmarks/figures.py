"""Figures of committed results, from their files alone: `python -m benchmarks.figures --results benchmarks/results`.

`federation.png` and `federation-presets.png`: a round in multiples of its bare passes; `peers/cpu.png`: rounds a second
and memory beside other simulators; `sharpness.png`: the largest eigenvalue against compressors and heterogeneity, of
the studies `standard` and `heterogeneity` (in the latter each algorithm at the radius that is best for that alpha).
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsynsam.report.figures import COLORS, STYLE, new_figure, save

Row = dict[str, str]
PEERS = {
    "fedsynsam": "this simulator, two threads",
    "fedsynsam-ranks": "this simulator, two processes",
    "eager": "eager loop",
    "flower": "Flower",
    "pfl": "pfl",
}
SPECS = ("none", "quantize:4", "quantize:2", "topk:0.01", "topk:0.01+quantize:4")  # from many bytes to few


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _facts(figure: Figure, rows: Sequence[Row]) -> None:
    dates = sorted({row["date"] for row in rows})
    text = f"{rows[0]['device']} · torch {rows[0]['torch']} · {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    figure.suptitle(text, fontsize=8, x=0.01, ha="left")


def _seeds(rows: Sequence[Row]) -> str:
    return f"{len({row['seed'] for row in rows})} seeds"


def federation(rows: Sequence[Row]) -> Figure:
    """Draw two bars a case: against this library's passes, with quartiles, and against PyTorch's; and its goal."""
    figure, [axes] = new_figure(1, width=7.5, height=1.4 + 0.36 * len(rows))
    names = [f"{row['algorithm']}, {row['compressor']}\n{row['options']}".strip() for row in rows]
    ratios = [float(row["ratio"]) for row in rows]
    spread = [[abs(float(row["ratio"]) - float(row[key])) for row in rows] for key in ("low", "high")]
    own = {"color": COLORS[0], "height": 0.3, "label": "of this library's bare passes"}
    axes.barh([place - 0.17 for place in range(len(rows))], ratios, xerr=spread, error_kw={"linewidth": 1}, **own)
    theirs, less = [float(row["to_pytorch"]) for row in rows], [place + 0.17 for place in range(len(rows))]
    axes.barh(less, theirs, color=COLORS[1], height=0.3, label="of PyTorch's")
    axes.set_yticks(range(len(rows)), names)
    for place, row in enumerate(rows):
        if row["goal"]:
            axes.plot([float(row["goal"])] * 2, [place - 0.4, place + 0.4], color=COLORS[2], linewidth=2.5)
    axes.axvline(1.0, color="#777777", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    goal = "; red: goal" if any(row["goal"] for row in rows) else ""
    axes.set_xlabel(f"a round in multiples of bare passes{goal}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    _facts(figure, rows)
    return figure


def peers(rows: Sequence[Row]) -> Figure:
    """Draw rounds a second in multiples of the eager loop's, and peak memory, a bar a simulator."""
    figure, (speed, memory) = new_figure(2, width=4.6, height=3.2)
    cohorts = list(dict.fromkeys(row["cohort"] for row in rows))
    for place, (peer, name) in enumerate(PEERS.items()):
        own = {row["cohort"]: row for row in rows if row["peer"] == peer}
        eager = {row["cohort"]: float(row["rounds_per_second"]) for row in rows if row["peer"] == "eager"}
        positions = [index + 0.17 * (place - 2) for index in range(len(cohorts))]
        times = [float(own[cohort]["rounds_per_second"]) / eager[cohort] for cohort in cohorts]
        look: dict[str, Any] = {"color": COLORS[place], "label": name}
        speed.bar_label(speed.bar(positions, times, 0.15, **look), fmt="%.2f", fontsize=7)
        gib = [float(own[cohort]["peak_rss_mib"]) / 1024 for cohort in cohorts]
        memory.bar_label(memory.bar(positions, gib, 0.15, **look), fmt="%.2g", fontsize=7)
    for axes, label in ((speed, "rounds a second (eager loop: 1)"), (memory, "peak memory, GiB")):
        axes.set_xticks(range(len(cohorts)), [f"{cohort} clients" for cohort in cohorts])
        axes.set_ylabel(label)
        axes.grid(axis="x", visible=False)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    _facts(figure, rows)
    return figure


def _lines(axes: Axes, rows: Sequence[Row], value: str, key: str, places: Sequence[str]) -> None:
    """Draw the mean and the standard deviation over the seeds of each algorithm's `value` at the `places` of `key`."""
    for place, name in enumerate(dict.fromkeys(row["algorithm"] for row in rows)):
        found = [
            [float(row[value]) for row in rows if row["algorithm"] == name and row[key] == where] for where in places
        ]
        means, spreads = [statistics.fmean(own) for own in found], [statistics.stdev(own) for own in found]
        shifted = [index + 0.05 * (place - 2) for index in range(len(places))]
        axes.errorbar(shifted, means, spreads, color=COLORS[place], label=name, marker="o", markersize=4, capsize=2)


def _at_own_radius(rows: Sequence[Row], own: Sequence[Row]) -> list[Row]:
    """Return `rows`, those of `own` in the place of rows of the same algorithm and alpha."""
    better = {(row["algorithm"], row["alpha"]) for row in own}
    return [row for row in rows if (row["algorithm"], row["alpha"]) not in better] + list(own)


def study(standard: Sequence[Row], heterogeneity: Sequence[Row], value: str, label: str) -> Figure:
    """Draw the column `value` against compressors at alpha 0.1, and against alpha under two of them."""
    figure, (left, *rest) = new_figure(3, width=4.0)
    _lines(left, standard, value, "compressor", SPECS)
    left.set_xticks(range(len(SPECS)), [spec.replace("+", "\n+") for spec in SPECS], fontsize=8, rotation=30)
    left.set_title(f"alpha = 0.1, {_seeds(standard)}")
    left.set_ylabel(label)
    alphas = sorted({row["alpha"] for row in heterogeneity}, key=float)
    for axes, spec in zip(rest, ("none", "topk:0.01"), strict=True):
        _lines(axes, [row for row in heterogeneity if row["compressor"] == spec], value, "alpha", alphas)
        axes.set_xticks(range(len(alphas)), [where.replace("inf", "inf (IID)") for where in alphas])
        axes.set_xlabel("alpha of the Dirichlet split")
        axes.set_title(f"{spec}, {_seeds(heterogeneity)}")
    lowest, highest = zip(*(axes.get_ylim() for axes in (left, *rest)), strict=True)
    for axes in (left, *rest):
        axes.set_ylim(0 if value == "sharpness" else min(lowest), max(highest))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw every figure whose files are there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--out", type=Path, help="folder of the figures, by default that of the files")
    options = parser.parse_args(arguments)
    results, out = options.results, options.out or options.results
    unlike = results / "heterogeneity"
    studies = [
        read(results / "standard" / "results.csv"),
        _at_own_radius(read(unlike / "results.csv"), read(unlike / "own-radius.csv")),
    ]
    with matplotlib.rc_context(STYLE):
        figures = {
            "federation.png": federation(read(results / "federation.csv")),
            "federation-presets.png": federation(read(results / "federation-presets.csv")),
            "peers/cpu.png": peers(read(results / "peers" / "cpu.csv")),
            "sharpness.png": study(*studies, "sharpness", "largest eigenvalue of the Hessian"),
            "accuracy.png": study(*studies, "final_accuracy", "test accuracy"),
        }
        for name, figure in figures.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            print(save(figure, out / name))


if __name__ == "__main__":
    main()
