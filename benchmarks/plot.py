"""Draws a benchmark's CSV: `python -m benchmarks.plot FILE.csv --out FOLDER`.

`NAME_roofline.png`: the bandwidth of each operation over the bytes it has to move, under that of the measured copies.
`NAME_copy.png`: the time of each operation in multiples of a copy of its floor bytes, with its goal.
`NAME_speedup.png`: how many times longer each peer takes, on a logarithmic axis.
The last two are drawn once for each size in the file, which is then part of the name: `NAME_copy_64x1000000.png`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .goals import EAGER_GOAL

Row = dict[str, str]

INK, FAINT = "#222222", "#d9d9d9"
MET, MISSED, NO_GOAL = "#2a7f62", "#c8553d", "#8d99ae"
PEER_COLOURS = {"allocating": "#5c6470", "compiled": "#f6ae2d"}
LIBRARY_COLOURS = ("#86bbd8", "#758e4f", "#a44a3f")
OP_COLOURS = {
    "topk": "#1b6ca8", "chunk_topk": "#59b0e3", "index_coding": "#9a6fb0", "quantize": "#c8553d",
    "dequantize": "#f0a58f", "aggregate": "#2a7f62", "sam_perturb": "#d49b00", "sam_step": "#f2cf63",
    "end_to_end": "#555555",
}  # fmt: skip
BACKEND_MARKERS = {"cuda": "o", "triton": "^", "cpu": "o", "reference": "x"}
MIB = 1 << 20


def read(path: Path) -> list[Row]:
    """Return the rows of the CSV; raise SystemExit if it is none of a benchmark."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"label", "backend", "times_copy", "speedup"} <= rows[0].keys():
        raise SystemExit(f"{path} holds no benchmark results; make some with `python -m benchmarks --out {path}`")
    return rows


def own(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the operations, without their peers."""
    return [row for row in rows if not row["speedup"]]


def size_of(row: Row) -> tuple[int, int]:
    return int(row["rows"]), int(row["n"])


def title(rows: Sequence[Row]) -> str:
    """Return device, sizes and versions in one line."""
    first = rows[0]
    sizes = ", ".join(f"{c:,} × {n:,}" for c, n in dict.fromkeys(map(size_of, rows)))
    threads = f", {first['threads']} threads" if first["threads"] else ""
    return (
        f"{first['device']}{threads} · {sizes} float32 · torch {first['torch']} · {first['commit']} · {first['date']}"
    )


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Return the label, with the backend where there are several."""
    several = len({r["backend"] for r in rows}) > 1
    return f"{row['label']} · {row['backend']}" if several else row["label"]


def bound_of(row: Row) -> float | None:
    """Return the goal in multiples of the copy, or None where the goal is another or there is none."""
    return float(row["goal"].removeprefix("times_copy<=")) if row["goal"].startswith("times_copy<=") else None


def chart(count: int, heading: str, rows: Sequence[Row]) -> tuple[Figure, Axes]:
    """Return empty axes for `count` lines, under a heading and the line that says where it was measured."""
    figure, axes = plt.subplots(figsize=(9, 1.9 + 0.27 * count), layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes.set_title(title(rows), loc="right", fontsize=7, color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def lines(axes: Axes, names: Sequence[str], values: Sequence[str]) -> None:
    """Label the lines from the top down: names on the left, values in a column of their own on the right."""
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.grid(True, color=FAINT, linewidth=0.8)
    for place, value in enumerate(values):
        axes.annotate(
            value,
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
            annotation_clip=False,
        )


def draw_copy(rows: Sequence[Row]) -> Figure:
    """Return the chart of the operations against the memory copy."""
    mine = own(rows)
    figure, axes = chart(len(mine), "Kernels against the memory copy", rows)
    values = [float(row["times_copy"]) for row in mine]
    # Small kernels (index coding) lie far out; the axis is cut where the goals are still told apart.
    limit = min(max(values) * 1.05, 6.0)
    colours = [{"yes": MET, "no": MISSED}.get(row["met"], NO_GOAL) for row in mine]
    axes.barh(range(len(mine)), [min(value, limit) for value in values], color=colours, height=0.68)
    for place, (row, value) in enumerate(zip(mine, values, strict=True)):
        if (bound := bound_of(row)) is not None:
            axes.plot([bound, bound], [place - 0.44, place + 0.44], color=INK, linewidth=2)
        if value > limit:  # a cut bar says so
            axes.plot([limit * 0.985, limit * 0.975], [place + 0.4, place - 0.4], color="white", linewidth=3)
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(0, limit)
    lines(axes, [name_of(row, mine) for row in mine], [f"{value:.2f} ×" for value in values])
    axes.set_xlabel("time over that of a copy of the floor bytes (dashed)", fontsize=9)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=MET, label="goal met"),
        plt.Rectangle((0, 0), 1, 1, color=MISSED, label="goal missed"),
        plt.Rectangle((0, 0), 1, 1, color=NO_GOAL, label="no goal"),
        plt.Line2D([], [], color=INK, linewidth=2, label="goal (index coding: 10 % of its top-k)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8, ncols=4)
    return figure


def draw_speedup(rows: Sequence[Row]) -> Figure:
    """Return the chart of the peers' times in multiples of ours: bars for eager PyTorch, marks for the others."""
    peers = [row for row in rows if row["speedup"]]
    names = list(dict.fromkeys(row["label"] for row in peers))
    eager = {row["label"]: row for row in peers if row["backend"] == "eager"}
    kinds = [kind for kind in dict.fromkeys(row["backend"] for row in peers) if kind != "eager"]
    libraries = [kind for kind in kinds if kind not in PEER_COLOURS]
    colours = PEER_COLOURS | {k: LIBRARY_COLOURS[i % len(LIBRARY_COLOURS)] for i, k in enumerate(libraries)}
    figure, axes = chart(len(names), "Kernels against their peers", rows)
    axes.set_xscale("log")
    for label, row in eager.items():
        colour = {"yes": MET, "no": MISSED}.get(row["met"], NO_GOAL)
        axes.barh(names.index(label), float(row["speedup"]) - 1, left=1.0, height=0.68, color=colour, alpha=0.85)
    for kind in kinds:
        points = [(float(row["speedup"]), names.index(row["label"])) for row in peers if row["backend"] == kind]
        style = {"marker": "o" if kind in PEER_COLOURS else "D", "s": 30, "edgecolors": "white", "linewidths": 0.8}
        axes.scatter(*zip(*points, strict=True), color=colours[kind], label=kind, zorder=3, **style)
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axvline(EAGER_GOAL, color=INK, linewidth=2)
    values = [float(row["speedup"]) for row in peers]
    axes.set_xlim(min(0.7, *values) * 0.85, max(10.0, *values) * 1.15)
    lines(axes, names, [f"{float(eager[name]['speedup']):.3g} ×" if name in eager else "" for name in names])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
    axes.set_xlabel("the peer's time over ours (right of the dashed line we are faster)", fontsize=9)
    bars = [
        plt.Rectangle((0, 0), 1, 1, color=MET, label="eager PyTorch, goal met"),
        plt.Rectangle((0, 0), 1, 1, color=MISSED, label="eager PyTorch, goal missed"),
        plt.Rectangle((0, 0), 1, 1, color=NO_GOAL, label="eager PyTorch, no goal"),
        plt.Line2D([], [], color=INK, linewidth=2, label=f"goal for eager: {EAGER_GOAL:g} ×"),
    ]
    handles = [*bars, *axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8, ncols=4)
    return figure


def draw_roofline(rows: Sequence[Row]) -> Figure:
    """Return achieved bandwidth over bytes moved, each operation and backend a mark, and the copies as a line."""
    mine = own(rows)
    figure, axes = chart(15, "Bandwidth of the kernels", rows)
    roof: dict[float, list[float]] = {}
    for row in mine:
        roof.setdefault(float(row["floor_bytes"]) / MIB, []).append(float(row["copy_gbps"]))
    sizes = sorted(roof)
    axes.plot(sizes, [max(roof[size]) for size in sizes], color=INK, linewidth=1.6, label="measured copy", zorder=1)
    for op in dict.fromkeys(row["op"] for row in mine):
        for backend in dict.fromkeys(row["backend"] for row in mine if row["op"] == op):
            found = [row for row in mine if (row["op"], row["backend"]) == (op, backend)]
            marker = BACKEND_MARKERS.get(backend, "s")
            style = {"edgecolors": "white", "linewidths": 0.8} if marker != "x" else {}
            axes.scatter(
                [float(row["floor_bytes"]) / MIB for row in found],
                [float(row["floor_gbps"]) for row in found],
                color=OP_COLOURS.get(op, NO_GOAL), marker=marker, s=48, label=f"{op} · {backend}", zorder=2, **style,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.grid(True, color=FAINT, linewidth=0.8)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.set_xlabel("bytes that must be moved (the floor), MiB", fontsize=9)
    axes.set_ylabel("floor bytes over time, GB/s", fontsize=9)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Yield (name, figure) of each chart."""
    yield "roofline", draw_roofline(rows)
    sizes = list(dict.fromkeys(map(size_of, rows)))
    for size in sizes:
        some = [row for row in rows if size_of(row) == size]
        suffix = f"_{size[0]}x{size[1]}" if len(sizes) > 1 else ""
        yield f"copy{suffix}", draw_copy(some)
        if any(row["speedup"] for row in some):
            yield f"speedup{suffix}", draw_speedup(some)


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
    for name, figure in figures(rows):
        path = folder / f"{options.csv.stem}_{name}.png"
        figure.savefig(path, dpi=150)
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
