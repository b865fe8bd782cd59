"""Draws a benchmark's CSV: `python -m benchmarks.plot FILE.csv --out FOLDER`.

`NAME_copy.png`: the time of each operation in multiples of a copy of its floor bytes, with its goal.
`NAME_speedup.png`: how many times longer each peer takes, on a logarithmic axis.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from .goals import EAGER_GOAL

Row = dict[str, str]

INK, FAINT = "#222222", "#d9d9d9"
MET, MISSED, NO_GOAL = "#2a7f62", "#c8553d", "#8d99ae"
PEER_COLOURS = {"eager": "#33658a", "compiled": "#f6ae2d", "allocating": "#8d99ae"}
LIBRARY_COLOURS = ("#86bbd8", "#758e4f", "#a44a3f")


def read(path: Path) -> list[Row]:
    """Return the rows of the CSV; raise SystemExit if it is none of a benchmark."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"label", "backend", "times_copy", "speedup"} <= rows[0].keys():
        raise SystemExit(f"{path} holds no benchmark results; make some with `python -m benchmarks --out {path}`")
    return rows


def title(rows: list[Row]) -> str:
    """Return device, sizes and versions in one line."""
    first = rows[0]
    sizes = ", ".join(dict.fromkeys(f"{int(row['rows']):,} × {int(row['n']):,}" for row in rows))
    threads = f", {first['threads']} threads" if first["threads"] else ""
    return (
        f"{first['device']}{threads} · {sizes} float32 · torch {first['torch']} · {first['commit']} · {first['date']}"
    )


def name_of(row: Row, rows: list[Row]) -> str:
    """Return the label, with the size where there are several."""
    several = len({(r["rows"], r["n"]) for r in rows}) > 1
    return f"{row['label']} ({int(row['rows'])} × {float(row['n']):.3g})" if several else row["label"]


def bound_of(row: Row) -> float | None:
    """Return the goal in multiples of the copy, or None where the goal is another or there is none."""
    return float(row["goal"].removeprefix("times_copy<=")) if row["goal"].startswith("times_copy<=") else None


def style(axes: Axes, names: Sequence[str]) -> None:
    """Label the bars from the top down, and leave out what carries no information."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.xaxis.grid(True, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def draw_copy(rows: list[Row]) -> Figure:
    """Return the chart of the operations against the memory copy."""
    own = [row for row in rows if not row["speedup"]]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.27 * len(own)), layout="constrained")
    values = [float(row["times_copy"]) for row in own]
    # Small kernels (index coding) lie far out; the axis is cut where the goals are still told apart.
    limit = min(max(values) * 1.12, 6.0)
    colours = [{"yes": MET, "no": MISSED}.get(row["met"], NO_GOAL) for row in own]
    axes.barh(range(len(own)), [min(value, limit) for value in values], color=colours, height=0.68)
    for place, (row, value) in enumerate(zip(own, values, strict=True)):
        inside = value > 0.9 * limit
        axes.annotate(
            f"{value:.2f}",
            (min(value, limit), place),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=8,
            color="white" if inside else INK,
            path_effects=[] if inside else [withStroke(linewidth=3, foreground="white")],
        )
        if (bound := bound_of(row)) is not None:
            axes.plot([bound, bound], [place - 0.44, place + 0.44], color=INK, linewidth=2)
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(0, limit)
    style(axes, [name_of(row, own) for row in own])
    axes.set_xlabel("time in multiples of a memory copy of the floor bytes (dashed: the copy itself)")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=MET, label="goal met"),
        plt.Rectangle((0, 0), 1, 1, color=MISSED, label="goal missed"),
        plt.Rectangle((0, 0), 1, 1, color=NO_GOAL, label="no goal"),
        plt.Line2D([], [], color=INK, linewidth=2, label="goal (index coding: 10 % of its top-k)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8, ncols=4)
    figure.suptitle("Kernels against the memory roof", x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes.set_title(title(rows), loc="right", fontsize=7, color="#555555")
    return figure


def draw_speedup(rows: list[Row]) -> Figure:
    """Return the chart of the peers' times in multiples of ours."""
    peers = [row for row in rows if row["speedup"]]
    names = list(dict.fromkeys(name_of(row, rows) for row in peers))
    kinds = list(dict.fromkeys(row["backend"] for row in peers))
    libraries = [kind for kind in kinds if kind not in PEER_COLOURS]
    colours = PEER_COLOURS | {k: LIBRARY_COLOURS[i % len(LIBRARY_COLOURS)] for i, k in enumerate(libraries)}
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.3 * len(names)), layout="constrained")
    for kind in kinds:
        points = [(float(row["speedup"]), names.index(name_of(row, rows))) for row in peers if row["backend"] == kind]
        marker = "o" if kind in PEER_COLOURS else "D"
        axes.scatter(*zip(*points, strict=True), color=colours[kind], marker=marker, s=34, label=kind, zorder=3)
    axes.set_xscale("log")
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axvline(EAGER_GOAL, color=INK, linewidth=2, label=f"goal for eager: {EAGER_GOAL:g} ×")
    style(axes, names)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g} ×"))
    axes.set_xlabel("the peer's time over ours (right of the dashed line: we are faster)")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=4)
    figure.suptitle("Kernels against their peers", x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes.set_title(title(rows), loc="right", fontsize=7, color="#555555")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the charts that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the PNG files; default: beside the CSV")
    options = parser.parse_args(arguments)
    if not options.csv.is_file():
        raise SystemExit(f"{options.csv} does not exist")
    rows = read(options.csv)
    folder = options.out or options.csv.parent
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"copy": draw_copy(rows)}
    if any(row["speedup"] for row in rows):
        figures["speedup"] = draw_speedup(rows)
    for name, figure in figures.items():
        path = folder / f"{options.csv.stem}_{name}.png"
        figure.savefig(path, dpi=150)
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
