"""The figures of a run, by matplotlib, and the style of all figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..fl.metrics import RoundMetrics

# legible on white and on black
COLORS = (
    "#4269d0", "#efb118", "#ff725c", "#3ca951", "#97bbf5", "#a463f2", "#9c6b4e", "#6cc5b0", "#ff8ab7", "#9498a0",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "font.size": 10,
}


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, dpi=140, format="png")
    os.replace(temporary, path)
    return path


def new_figure(columns: int, rows: int = 1, width: float = 4.6, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure of `rows` x `columns` panels of so many inches each, and its axes, flat."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(rows, columns)).flatten()


def save_curves(rounds: Sequence[RoundMetrics], path: Path, title: str) -> Path:
    """Draw accuracy and loss over rounds and accuracy over uplink bytes; cosines and sharpness if they were logged."""
    panels = [_draw_accuracy, _draw_loss, _draw_accuracy_against_bytes]
    if any(row.cosines for row in rounds):
        panels.append(_draw_cosines)
    if any(row.sharpness is not None for row in rounds):
        panels.append(_draw_sharpness)
    if any(row.synthetic_loss is not None for row in rounds):
        panels.append(_draw_synthesis)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(len(panels))
        for draw, axis in zip(panels, axes, strict=True):
            draw(axis, rounds)
        figure.suptitle(title)
        return save(figure, path)


def _evaluated(rounds: Sequence[RoundMetrics]) -> tuple[list[RoundMetrics], list[float], str]:
    """The evaluated rounds, their accuracy in percent, and the marker that suits as many points."""
    evaluated = [row for row in rounds if row.test_accuracy is not None]
    return evaluated, [100 * (row.test_accuracy or 0) for row in evaluated], "." if len(evaluated) < 40 else ""


def _draw_accuracy(axis: Axes, rounds: Sequence[RoundMetrics]) -> None:
    evaluated, accuracy, marker = _evaluated(rounds)
    axis.plot([row.round for row in evaluated], accuracy, color=COLORS[0], marker=marker)
    axis.set(xlabel="round", ylabel="test accuracy, %", title="accuracy")


def _draw_loss(axis: Axes, rounds: Sequence[RoundMetrics]) -> None:
    evaluated, _, _ = _evaluated(rounds)
    axis.plot([row.round for row in rounds], [row.train_loss for row in rounds], color=COLORS[1], label="local")
    test = [float(row.test_loss or 0) for row in evaluated]
    axis.plot([row.round for row in evaluated], test, color=COLORS[0], label="test")
    axis.set(xlabel="round", ylabel="cross-entropy", title="loss (local: mean over local steps)")
    axis.legend()


def _draw_accuracy_against_bytes(axis: Axes, rounds: Sequence[RoundMetrics]) -> None:
    evaluated, accuracy, marker = _evaluated(rounds)
    sent = dict(zip((row.round for row in rounds), np.cumsum([row.uplink_bytes for row in rounds]) / 1e6, strict=True))
    axis.plot([sent[row.round] for row in evaluated], accuracy, color=COLORS[0], marker=marker)
    axis.set(xlabel="uplink so far, MB (encoded payloads)", ylabel="test accuracy, %")
    axis.set_title("accuracy against bytes sent")


def _draw_cosines(axis: Axes, rounds: Sequence[RoundMetrics]) -> None:
    logged = [row for row in rounds if row.cosines]
    names = list(dict.fromkeys(name for row in logged for name in row.cosines or {}))
    for color, name in zip(COLORS, names, strict=False):
        points = [(row.round, row.cosines[name]) for row in logged if row.cosines and name in row.cosines]
        axis.plot(*zip(*points, strict=True), color=color, label=name, marker=".")
    axis.set(xlabel="round", ylabel="cosine with the global gradient", ylim=(-1, 1))
    axis.set_title("directions, at the local weights")
    axis.legend(ncols=2, loc="lower right", fontsize="small")


def _draw_sharpness(axis: Axes, rounds: Sequence[RoundMetrics]) -> None:
    points = [(row.round, row.sharpness) for row in rounds if row.sharpness is not None]
    axis.plot(*zip(*points, strict=True), color=COLORS[0], marker=".")
    axis.set(xlabel="round", ylabel="largest Hessian eigenvalue", title="sharpness", ylim=(0, None))


def _draw_synthesis(axis: Axes, rounds: Sequence[RoundMetrics]) -> None:
    points = [(row.round - 1, row.synthetic_loss) for row in rounds if row.synthetic_loss is not None]
    axis.plot(*zip(*points, strict=True), color=COLORS[0], marker=".")
    seconds, whole = sum(row.synthetic_seconds or 0 for row in rounds), sum(row.seconds for row in rounds)
    axis.set(xlabel="finished rounds", ylabel="matching loss at its end", ylim=(0, None))
    axis.set_title(f"learning the synthetic set: {seconds:.1f} of {whole:.0f} s")


def save_slices(places: np.ndarray, line: np.ndarray, plane: np.ndarray, path: Path, title: str) -> Path:
    """Draw the loss along one direction, and as contours over two; places in multiples of the filters' norms."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = new_figure(2)
        left.plot(places, line, color=COLORS[0])
        left.set(xlabel="place along a random direction", ylabel="training loss", ylim=(0, None), title="one direction")
        contours = right.contourf(places, places, plane, levels=20, cmap="viridis")
        right.set(xlabel="first direction", ylabel="second direction", title="two directions", aspect="equal")
        figure.colorbar(contours, ax=right, label="training loss")
        figure.suptitle(title)
        return save(figure, path)


def save_advice(curves: dict[str, tuple[float, float]], path: Path, title: str) -> Path:
    """Draw seconds of a round against bandwidth for each spec, given its fixed seconds and the bits it sends.

    A dot marks where a curve crosses the first one, that of dense updates.
    """
    rates = np.logspace(5, 11, 200)
    dense_fixed, dense_bits = next(iter(curves.values()))
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = new_figure(1, width=7.0, height=4.4)
        for place, (spec, (fixed, bits)) in enumerate(curves.items()):
            color, dashes = COLORS[place % len(COLORS)], DASHES[place // len(COLORS) % len(DASHES)]
            axis.plot(rates, fixed + bits / rates, color=color, linestyle=dashes, label=spec)
            if fixed > dense_fixed and bits < dense_bits:
                crossing = (dense_bits - bits) / (fixed - dense_fixed)
                if crossing <= rates[-1]:
                    axis.plot(crossing, fixed + bits / crossing, "o", color=color, markersize=6)
        axis.set(xscale="log", yscale="log", xlabel="uplink of a client, bit/s", ylabel="seconds from update to mean")
        axis.set_title(title)
        axis.legend()
        return save(figure, path)
