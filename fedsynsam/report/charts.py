"""The page's charts, by Plotly: each with the numbers that it shows, as a table. Needs the extra `[report]`.

A chart of many lines shows those of one setting (a compressor, a swept value) at a time; the page lets one choose.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import plotly.graph_objects as go

from ..compress import compressor as build_compressor
from ..fl.metrics import RoundMetrics
from .figures import COLORS
from .groups import Comparison, Group
from .text import value_text

# as many as share no divisor with the colours, so that 90 algorithms have a pair of their own
SYMBOLS = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "star", "cross", "x", "triangle-left",
)  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Chart:
    """A figure, the sentence above it, its numbers (a header and rows of cells), and the settings of its lines."""

    title: str
    figure: go.Figure
    header: list[str]
    rows: list[list[str]]

    @property
    def settings(self) -> list[str]:
        """The settings to choose from, each once, in order."""
        return list(dict.fromkeys(trace.meta for trace in self.figure.data))


def charts(comparison: Comparison) -> list[Chart]:
    """Every chart that the runs have numbers for."""
    found = [
        _against_swept(comparison, "Accuracy", "test accuracy, %", lambda group: _percents(group.accuracies)),
        _against_swept(comparison, "Sharpness at the end", "largest eigenvalue", _last_sharpness),
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


def _percents(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]


def _last_sharpness(group: Group) -> list[float]:
    """One a seed, or none at all where a run measured none."""
    found = [run.summary.get("sharpness") for run in group.runs]
    return [] if None in found else [float(value or 0.0) for value in found]


def _over_rounds(
    comparison: Comparison, title: str, value: Callable[[RoundMetrics], float | None], digits: str
) -> Chart | None:
    """Lines of the mean over seeds, one an algorithm and setting."""
    figure, rows = go.Figure(), []
    for group in comparison.groups:
        series = _series(group, value)
        if not series:
            continue
        setting = _setting(comparison, group.compressor, group.value)
        means = {number: statistics.fmean(values) for number, values in series.items()}
        figure.add_scatter(
            x=list(means), y=list(means.values()), mode="lines+markers",
            customdata=[[min(values), max(values)] for values in series.values()],
            hovertemplate=f"round %{{x}}: %{{y:{digits}}} (%{{customdata[0]:{digits}}} to %{{customdata[1]:{digits}}})",
            **_look(comparison, group.algorithm, setting),
        )  # fmt: skip
        rows += [
            [_name(group.algorithm, setting), str(number), *(f"{one:{digits}}" for one in (mean, low, high))]
            for number, mean in means.items()
            for low, high in [(min(series[number]), max(series[number]))]
        ]
    figure.update_layout(xaxis_title="round", yaxis_title=title)
    return Chart(title, figure, ["run", "round", "mean", "lowest", "highest"], rows) if rows else None


def _series(group: Group, value: Callable[[RoundMetrics], float | None]) -> dict[int, list[float]]:
    """Of the rounds that every seed has: one value a seed."""
    each = [{row.round: value(row) for row in run.rounds} for run in group.runs]
    rounds = [number for number in each[0] if all(one.get(number) is not None for one in each)]
    return {number: [float(one[number] or 0.0) for one in each] for number in rounds}


def _against_swept(
    comparison: Comparison, what: str, axis: str, values_of: Callable[[Group], list[float]]
) -> Chart | None:
    """Mean ± sd over seeds against the swept value, whose values lie at equal distances; None without a sweep."""
    if comparison.swept is None:
        return None
    figure, rows = go.Figure(), []
    for compressor in comparison.compressors:
        setting = compressor if len(comparison.compressors) > 1 else ""
        for algorithm in comparison.algorithms:
            groups = [comparison.group(algorithm, compressor, value) for value in comparison.values]
            found = {value_text(group.value): values_of(group) for group in groups if group is not None}
            points = {place: (statistics.fmean(seeds), _spread(seeds)) for place, seeds in found.items() if seeds}
            if not points:
                continue
            figure.add_scatter(
                x=list(points), y=[mean for mean, _ in points.values()], mode="lines+markers",
                error_y={"type": "data", "array": [spread or 0.0 for _, spread in points.values()]},
                hovertemplate=f"{comparison.swept} %{{x}}: %{{y:.2f}} ± %{{error_y.array:.2f}}",
                **_look(comparison, algorithm, setting),
            )  # fmt: skip
            rows += [
                [_name(algorithm, setting), place, f"{mean:.2f}", "" if spread is None else f"{spread:.2f}"]
                for place, (mean, spread) in points.items()
            ]
    places = [value_text(value) for value in comparison.values]
    figure.update_layout(xaxis_title=comparison.swept, yaxis_title=axis)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=places)
    header = ["run", comparison.swept, "mean", "standard deviation"]
    return Chart(f"{what} against {comparison.swept}", figure, header, rows) if rows else None


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _against_bytes(comparison: Comparison) -> Chart:
    """Final accuracy against the uplink of a run: a line an algorithm through its compressors."""
    figure, rows = go.Figure(), []
    for setting, part in comparison.parts():
        for algorithm in part.algorithms:
            groups = sorted((one for one in part.groups if one.algorithm == algorithm), key=lambda one: one.uplink)
            if not groups:
                continue
            spreads = [100 * (group.spread or 0.0) for group in groups]
            figure.add_scatter(
                x=[group.uplink / 1e6 for group in groups], y=[100 * group.mean for group in groups],
                error_y={"type": "data", "array": spreads}, mode="lines+markers",
                customdata=[group.compressor for group in groups],
                hovertemplate="%{customdata}, %{x:.3g} MB: %{y:.2f} ± %{error_y.array:.2f} %",
                **_look(comparison, algorithm, setting),
            )  # fmt: skip
            for group in groups:
                numbers = [f"{group.uplink / 1e6:.4g}", f"{100 * group.mean:.2f}"]
                spread = "" if group.spread is None else f"{100 * group.spread:.2f}"
                rows.append([_name(algorithm, setting), group.compressor, *numbers, spread])
    figure.update_layout(xaxis_title="uplink of a run, MB (encoded payloads)", yaxis_title="test accuracy, %")
    figure.update_xaxes(type="log")
    title = "Accuracy (mean over the last fifth of the rounds) against bytes sent"
    return Chart(title, figure, ["run", "compressor", "uplink, MB", "accuracy, %", "standard deviation"], rows)


def _cosines(comparison: Comparison) -> Chart | None:
    """The cosine of each estimate of the direction with the global gradient; a setting is a group that logged it."""
    figure, rows = go.Figure(), []
    for group in comparison.groups:
        logged = dict.fromkeys(name for run in group.runs for row in run.rounds for name in row.cosines or {})
        setting = _name(group.algorithm, _setting(comparison, group.compressor, group.value))
        for place, estimate in enumerate(logged):
            series = _series(group, partial(_cosine, estimate=estimate))
            means = {number: statistics.fmean(values) for number, values in series.items()}
            figure.add_scatter(
                x=list(means), y=list(means.values()), name=estimate, meta=setting, mode="lines+markers",
                marker_size=5, line_color=COLORS[place % len(COLORS)], hovertemplate="round %{x}: %{y:.3f}",
            )  # fmt: skip
            rows += [[setting, estimate, str(number), f"{mean:.4f}"] for number, mean in means.items()]
    figure.update_layout(xaxis_title="round", yaxis_title="cosine with the global gradient")
    title = "How well each estimate points along the global gradient, at the local weights"
    return Chart(title, figure, ["run", "estimate", "round", "cosine"], rows) if rows else None


def _cosine(row: RoundMetrics, estimate: str) -> float | None:
    return (row.cosines or {}).get(estimate)


def _sharpness_against(comparison: Comparison, option: str) -> Chart | None:
    """Sharpness at the end of the run against bits or density; uncompressed is 32 bits, density 1."""
    figure, rows, places = go.Figure(), [], set[float]()
    for setting, part in comparison.parts():
        for algorithm in part.algorithms:
            line: list[tuple[float, str, float]] = []
            for group in part.groups:
                place, seeds = _place(group.compressor, option), _last_sharpness(group)
                if group.algorithm == algorithm and place is not None and seeds:
                    line.append((place, group.compressor, statistics.fmean(seeds)))
            if not line:
                continue
            line.sort()
            places |= {place for place, _, _ in line}
            figure.add_scatter(
                x=[place for place, _, _ in line], y=[value for _, _, value in line], mode="lines+markers",
                customdata=[spec for _, spec, _ in line], hovertemplate="%{customdata}: %{y:.2f}",
                **_look(comparison, algorithm, setting),
            )  # fmt: skip
            rows += [[_name(algorithm, setting), spec, f"{place:g}", f"{value:.3f}"] for place, spec, value in line]
    if len(places) < 2:
        return None
    figure.update_layout(xaxis_title=option, yaxis_title="largest eigenvalue")
    figure.update_xaxes(type="log", tickvals=sorted(places), ticktext=[f"{place:g}" for place in sorted(places)])
    return Chart(f"Sharpness at the end against {option}", figure, ["run", "compressor", option, "sharpness"], rows)


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


def _setting(comparison: Comparison, compressor: str, value: Any) -> str:
    """What tells a line from the others of its algorithm: its compressor, if there are several, and swept value."""
    words = [compressor] if len(comparison.compressors) > 1 else []
    return ", ".join(words + ([] if comparison.swept is None else [f"{comparison.swept} = {value_text(value)}"]))


def _name(algorithm: str, setting: str) -> str:
    return f"{algorithm}, {setting}" if setting else algorithm


def _look(comparison: Comparison, algorithm: str, setting: str) -> dict[str, Any]:
    """Name, colour and symbol of an algorithm's line; `meta` is its setting, by which the page shows and hides it."""
    index = comparison.algorithms.index(algorithm)
    color, symbol = COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS)]
    return {"name": algorithm, "meta": setting, "line_color": color, "marker": {"symbol": symbol, "size": 7}}


def styled(chart: Chart) -> go.Figure:
    """The figure in colours that do on a light and a dark page, as wide as the page, with its first setting shown."""
    figure, settings = chart.figure, chart.settings
    for trace in figure.data:
        trace.visible = trace.meta == settings[0]
        trace.line.dash = DASHES[settings.index(trace.meta) % len(DASHES)]
    names = {trace.name for trace in figure.data}
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)", "automargin": True}
    figure.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font_color="#808080",
        height=420 + 12 * len(names), margin={"l": 60, "r": 10, "t": 10, "b": 50}, hovermode="closest",
        showlegend=True, legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#808080"},
    )  # fmt: skip
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure
