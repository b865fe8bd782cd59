"""The figures of a comparison, by matplotlib: a colour and a marker an algorithm, the same in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLORS, STYLE, new_figure, save
from .groups import Comparison, Group
from .text import value_text

MARKERS = "os^Dv*PX<"  # as many as share no divisor with the colours: 90 pairs


def save_comparison_figures(comparison: Comparison, out: Path) -> list[Path]:
    """Accuracy curves; then accuracy against uplink bytes and as bars, or in a sweep against the swept value."""
    for name in ("sweep.png",) if comparison.swept is None else ("bytes.png", "bars.png"):  # of an earlier comparison
        (out / name).unlink(missing_ok=True)
    with matplotlib.rc_context(STYLE):
        if comparison.swept is not None:
            return [_save_curves(comparison, out / "accuracy.png"), _save_sweep(comparison, out / "sweep.png")]
        return [
            _save_curves(comparison, out / "accuracy.png"),
            _save_accuracy_against_bytes(comparison, out / "bytes.png"),
            _save_bars(comparison, out / "bars.png"),
        ]


def _look(comparison: Comparison, algorithm: str) -> dict[str, Any]:
    index = comparison.algorithms.index(algorithm)
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _height(comparison: Comparison, least: float) -> float:
    """Inches of a panel that leave room for the legend."""
    return max(least, 0.6 + 0.22 * len(comparison.algorithms))


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Name every algorithm once, those that not all panels show included."""
    entries = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes]
    handles = {label: handle for pairs in entries for handle, label in pairs}
    figure.legend(handles.values(), handles.keys(), loc="outside right center")


def _curve(group: Group) -> tuple[list[int], np.ndarray]:
    """Rounds that every seed evaluated, and the accuracies [seeds, rounds] in percent."""
    series = [
        {row.round: row.test_accuracy for row in run.rounds if row.test_accuracy is not None} for run in group.runs
    ]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    return steps, 100 * np.array([[one[step] for step in steps] for one in series], dtype=float)


def _save_curves(comparison: Comparison, path: Path) -> Path:
    """A panel a compressor, in a sweep a row of them a value."""
    columns, parts = comparison.compressors, comparison.parts()
    figure, axes = new_figure(len(columns), len(parts), 6.4 if len(columns) == 1 else 4.6, _height(comparison, 3.6))
    for place, axis in enumerate(axes):
        (name, part), compressor = parts[place // len(columns)], columns[place % len(columns)]
        for group in part.groups:
            if group.compressor != compressor:
                continue
            (steps, accuracy), look = _curve(group), _look(comparison, group.algorithm)
            axis.plot(steps, accuracy.mean(axis=0), label=group.algorithm, markersize=4, **look)
            low, high = accuracy.min(axis=0), accuracy.max(axis=0)
            axis.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axis.set(xlabel="round", ylabel="test accuracy, %", title=", ".join(filter(None, (compressor, name))))
    _legend(figure, axes)
    figure.suptitle("mean over seeds, band from lowest to highest")
    return save(figure, path)


def _save_accuracy_against_bytes(comparison: Comparison, path: Path) -> Path:
    """A line an algorithm through its compressors."""
    figure, (axis,) = new_figure(1, width=6.4, height=_height(comparison, 4.2))
    for algorithm in comparison.algorithms:
        groups = sorted((group for group in comparison.groups if group.algorithm == algorithm), key=lambda g: g.uplink)
        if not groups:
            continue
        sent, means = [group.uplink / 1e6 for group in groups], [100 * group.mean for group in groups]
        spreads = [100 * (group.spread or 0) for group in groups]
        axis.errorbar(sent, means, spreads, label=algorithm, capsize=3, linewidth=1, **_look(comparison, algorithm))
    axis.set(xscale="log", xlabel="uplink of a run, MB (encoded payloads)", ylabel="test accuracy, %")
    axis.set_title("accuracy (last fifth of the rounds) against bytes sent:\n" + ", ".join(comparison.compressors))
    figure.legend(loc="outside right center")
    return save(figure, path)


def _save_bars(comparison: Comparison, path: Path) -> Path:
    inches = 0.4 + 0.22 * len(comparison.algorithms)
    figure, (axis,) = new_figure(1, width=3.2 + inches * len(comparison.compressors), height=_height(comparison, 3.8))
    width = 0.8 / len(comparison.algorithms)
    heights: list[float] = []
    for index, algorithm in enumerate(comparison.algorithms):
        groups = [comparison.group(algorithm, compressor) for compressor in comparison.compressors]
        for place, group in enumerate(groups):
            if group is None:
                continue
            label = algorithm if not any(groups[:place]) else None
            heights.append(100 * group.mean)
            spread, color = 100 * (group.spread or 0), _look(comparison, algorithm)["color"]
            hatch = "//" if index >= len(COLORS) else None
            where = place + index * width
            axis.bar(
                where, heights[-1], width * 0.92, yerr=spread, color=color, hatch=hatch, edgecolor="white",
                linewidth=0, label=label, capsize=2,
            )  # fmt: skip
    axis.set_xticks(np.arange(len(comparison.compressors)) + 0.4 - width / 2, comparison.compressors)
    axis.set_ylim(max(0, min(heights) - 5), min(100, max(heights) + 3))
    axis.set(ylabel="test accuracy, % (axis cut)", title="mean over the last fifth of the rounds ± sd over seeds")
    figure.legend(loc="outside right center")
    return save(figure, path)


def _save_sweep(comparison: Comparison, path: Path) -> Path:
    """A panel a compressor: accuracy against the swept value, whose values lie at equal distances."""
    columns, places = comparison.compressors, [value_text(value) for value in comparison.values]
    figure, axes = new_figure(len(columns), 1, 6.4 if len(columns) == 1 else 4.6, _height(comparison, 3.6))
    for axis, compressor in zip(axes, columns, strict=True):
        for algorithm in comparison.algorithms:
            groups = [comparison.group(algorithm, compressor, value) for value in comparison.values]
            run = [(place, group) for place, group in enumerate(groups) if group is not None]
            if not run:
                continue
            axis.errorbar(
                [place for place, _ in run],
                [100 * group.mean for _, group in run],
                [100 * (group.spread or 0) for _, group in run],
                label=algorithm,
                capsize=3,
                **_look(comparison, algorithm),
            )
        axis.set_xticks(range(len(places)), places)
        axis.set(xlabel=comparison.swept, ylabel="test accuracy, %", title=compressor)
    _legend(figure, axes)
    figure.suptitle("mean over the last fifth of the rounds ± sd over seeds")
    return save(figure, path)
