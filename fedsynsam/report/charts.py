"""The page's charts, by Plotly: each with the numbers that it shows, as a table. Needs the extra `[report]`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import plotly.graph_objects as go

from ..compress import compressor as build_compressor
from ..fl.metrics import RoundMetrics
from .figures import COLORS
from .groups import Comparison, Group

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "star", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
Series = dict[int, list[float]]  # round -> one value a seed


@dataclass(frozen=True)
class Chart:
    """A figure, the sentence above it, and its numbers: a header and rows of cells."""

    title: str
    figure: go.Figure
    header: list[str]
    rows: list[list[str]]


def charts(comparison: Comparison) -> list[Chart]:
    """Every chart that the runs have numbers for."""
    found = [
        _over_rounds(comparison, "Test accuracy, %", lambda row: _percent(row.test_accuracy), ".2f"),
        _over_rounds(comparison, "Test loss (cross-entropy)", lambda row: row.test_loss, ".4f"),
        _against_bytes(comparison),
        _cosines(comparison),
        _over_rounds(comparison, "Sharpness: largest eigenvalue of the Hessian", lambda row: row.sharpness, ".2f"),
        _sharpness_against(comparison, "bits"),
        _sharpness_against(comparison, "density"),
    ]
    return [chart for chart in found if chart is not None]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _series(group: Group, value: Callable[[RoundMetrics], float | None]) -> Series:
    """The values of the rounds that every seed has."""
    each = [{row.round: value(row) for row in run.rounds} for run in group.runs]
    rounds = [number for number in each[0] if all(one.get(number) is not None for one in each)]
    return {number: [float(one[number] or 0.0) for one in each] for number in rounds}


def _over_rounds(
    comparison: Comparison, title: str, value: Callable[[RoundMetrics], float | None], digits: str
) -> Chart | None:
    """Lines of the mean over seeds: a colour an algorithm, a dash a compressor."""
    figure, rows = go.Figure(), []
    for group in comparison.groups:
        series = _series(group, value)
        if not series:
            continue
        means = {number: statistics.fmean(values) for number, values in series.items()}
        name = f"{group.algorithm}, {group.compressor}"
        figure.add_scatter(
            x=list(means), y=list(means.values()), name=name, mode="lines+markers", marker_size=5,
            line={"color": _color(comparison, group.algorithm), "dash": _dash(comparison, group.compressor)},
            customdata=[[min(values), max(values)] for values in series.values()],
            hovertemplate=f"round %{{x}}: %{{y:{digits}}} (%{{customdata[0]:{digits}}} to %{{customdata[1]:{digits}}})",
        )  # fmt: skip
        rows += [
            [name, str(number), f"{means[number]:{digits}}", f"{min(values):{digits}}", f"{max(values):{digits}}"]
            for number, values in series.items()
        ]
    figure.update_layout(xaxis_title="round", yaxis_title=title)
    return Chart(title, figure, ["run", "round", "mean", "lowest", "highest"], rows) if rows else None


def _against_bytes(comparison: Comparison) -> Chart:
    """Final accuracy against the uplink of a run."""
    figure, rows = go.Figure(), []
    for group in comparison.groups:
        sent = statistics.fmean(run.summary["uplink_bytes"] for run in group.runs) / 1e6
        mean, spread = 100 * group.mean, 100 * (group.spread or 0.0)
        name = f"{group.algorithm}, {group.compressor}"
        figure.add_scatter(
            x=[sent], y=[mean], error_y={"type": "data", "array": [spread]}, name=name, mode="markers",
            marker={"color": _color(comparison, group.algorithm), "size": 10},
            marker_symbol=_symbol(comparison, group.compressor),
            hovertemplate="%{x:.3g} MB: %{y:.2f} %",
        )  # fmt: skip
        rows.append([name, f"{sent:.4g}", f"{mean:.2f}", f"{spread:.2f}" if group.spread is not None else ""])
    figure.update_layout(xaxis_title="uplink of a run, MB (encoded payloads)", yaxis_title="test accuracy, %")
    figure.update_xaxes(type="log")
    title = "Accuracy (mean over the last fifth of the rounds) against bytes sent"
    return Chart(title, figure, ["run", "uplink, MB", "accuracy, %", "standard deviation"], rows)


def _cosines(comparison: Comparison) -> Chart | None:
    """The cosine of each estimate of the direction with the global gradient, of every group that logged it."""
    figure, rows = go.Figure(), []
    for group in comparison.groups:
        names = dict.fromkeys(name for run in group.runs for row in run.rounds for name in row.cosines or {})
        for color, estimate in zip(_cycle(COLORS), names, strict=False):
            series = _series(group, partial(_cosine, estimate=estimate))
            means = {number: statistics.fmean(values) for number, values in series.items()}
            name = f"{estimate} ({group.algorithm}, {group.compressor})"
            figure.add_scatter(
                x=list(means), y=list(means.values()), name=name, mode="lines+markers", marker_size=5,
                line={"color": color, "dash": _dash(comparison, group.compressor)},
                hovertemplate="round %{x}: %{y:.3f}",
            )  # fmt: skip
            rows += [[name, str(number), f"{mean:.4f}"] for number, mean in means.items()]
    figure.update_layout(xaxis_title="round", yaxis_title="cosine with the global gradient")
    title = "How well each estimate points along the global gradient, at the local weights"
    return Chart(title, figure, ["estimate", "round", "cosine"], rows) if rows else None


def _cosine(row: RoundMetrics, estimate: str) -> float | None:
    return (row.cosines or {}).get(estimate)


def _sharpness_against(comparison: Comparison, option: str) -> Chart | None:
    """Sharpness at the end of the run against bits or density; uncompressed is 32 bits, density 1."""
    points: dict[str, dict[float, float]] = {}
    for group in comparison.groups:
        values = [float(value) for run in group.runs if (value := run.summary.get("sharpness")) is not None]
        place = _place(group.compressor, option)
        if place is not None and len(values) == len(group.runs):
            points.setdefault(group.algorithm, {})[place] = statistics.fmean(values)
    if len({place for line in points.values() for place in line}) < 2:
        return None
    figure, rows = go.Figure(), []
    for algorithm, line in points.items():
        line = dict(sorted(line.items()))
        figure.add_scatter(
            x=list(line), y=list(line.values()), name=algorithm, mode="lines+markers",
            line_color=_color(comparison, algorithm), hovertemplate="%{x}: %{y:.2f}",
        )  # fmt: skip
        rows += [[algorithm, f"{place:g}", f"{value:.3f}"] for place, value in line.items()]
    figure.update_layout(xaxis_title=option, yaxis_title="largest eigenvalue")
    figure.update_xaxes(type="log")
    return Chart(f"Sharpness at the end against {option}", figure, ["algorithm", option, "sharpness"], rows)


def _place(spec: str, option: str) -> float | None:
    """Bits or density of a compressor that does that and nothing else; what `none` amounts to; else None."""
    parts = str(build_compressor(spec)).split("+")
    word = parts[0].split("[")[0]
    if len(parts) > 1:
        return None
    if word == "none":
        return 32.0 if option == "bits" else 1.0
    name, _, number = word.partition(":")
    return float(number) if name in {"bits": ("quantize",), "density": ("topk", "chunktopk")}[option] else None


def _cycle(values: Iterable[str]) -> list[str]:
    return [*values] * 4


def _color(comparison: Comparison, algorithm: str) -> str:
    return _cycle(COLORS)[comparison.algorithms.index(algorithm)]


def _dash(comparison: Comparison, compressor: str) -> str:
    return _cycle(DASHES)[comparison.compressors.index(compressor)]


def _symbol(comparison: Comparison, compressor: str) -> str:
    return _cycle(SYMBOLS)[comparison.compressors.index(compressor)]


def styled(figure: go.Figure) -> Any:
    """The figure with colours that do on a light and a dark page, as wide as the page."""
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)", "automargin": True}
    figure.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font_color="#808080",
        height=460, margin={"l": 60, "r": 10, "t": 10, "b": 50}, hovermode="closest", showlegend=True,
        legend={"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0},
    )  # fmt: skip
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure
