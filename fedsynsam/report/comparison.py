"""What a comparison leaves: results.csv, table.md, headline.json, figures, report.html, and a table in the terminal."""

from __future__ import annotations

import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..fl.tensorfile import write_atomically
from .comparison_figures import save_comparison_figures
from .groups import Comparison, headlines
from .page import comparison_page, why_no_page
from .results import results_csv, settings_note
from .text import bytes_text, percent

ALIKE = 0.05  # relative difference up to which two uplinks are told in one row


def write_comparison(comparison: Comparison, out: Path, command: str | None = None) -> list[Path]:
    """Write results.csv, table.md, headline.json, the figures and report.html to `out`; return their paths.

    The page is left out where the extra `[report]` is not installed; `why_no_page()` says so.
    """
    out.mkdir(parents=True, exist_ok=True)
    command_file = out / "command.txt"
    if command is not None:
        write_atomically(command_file, command.encode() + b"\n")
    elif command_file.exists():
        command = command_file.read_text().strip()
    found = headlines(comparison)
    write_atomically(out / "results.csv", results_csv(comparison).encode())
    write_atomically(out / "table.md", markdown_table(comparison).encode())
    write_atomically(out / "headline.json", json.dumps(found, indent=2).encode() + b"\n")
    figures = save_comparison_figures(comparison, out)
    written = [out / "results.csv", out / "table.md", out / "headline.json", *figures]
    if why_no_page() is None:
        page = comparison_page(comparison, [headline_text(entry) for entry in found], command)
        write_atomically(out / "report.html", page.encode())
        written.append(out / "report.html")
    return written


def table_rows(comparison: Comparison) -> list[list[str]]:
    """Header and rows: accuracy in percent (mean ± standard deviation over seeds) an algorithm and compressor.

    Of a comparison without a sweep, or of one of the `parts()` of a sweep.
    """
    rows = [["accuracy, %", *comparison.compressors]]
    for algorithm in comparison.algorithms:
        rows.append([algorithm, *(_accuracy(comparison, algorithm, spec) for spec in comparison.compressors)])
    return [*rows, *_uplink_rows(comparison)]


def _accuracy(comparison: Comparison, algorithm: str, compressor: str) -> str:
    """Mean and spread, and of how many of the comparison's seeds if not of all; or that nothing finished."""
    group, seeds = comparison.group(algorithm, compressor), len(comparison.seeds)
    if group is None:
        lost = len(comparison.planned_seeds(algorithm, compressor))
        return f"{comparison.lost} in {lost} of {seeds} seeds" if lost else ""
    missing = "" if len(group.runs) == seeds else f" ({len(group.runs)} of {seeds} seeds)"
    return percent(group.mean, group.spread) + missing


def _uplink_rows(comparison: Comparison) -> list[list[str]]:
    """A row of what a run's clients send under each compressor, and one for each algorithm that sends more or less."""
    ratios = {spec: found for spec in comparison.compressors if (found := _ratios(comparison, spec))}
    usual = {spec: statistics.median(found.values()) for spec, found in ratios.items()}
    finished = [name for name in comparison.algorithms if any(name in found for found in ratios.values())]
    unlike = [
        algorithm
        for algorithm in finished
        if any(abs(found.get(algorithm, usual[spec]) / usual[spec] - 1) > ALIKE for spec, found in ratios.items())
    ]
    alike = [algorithm for algorithm in finished if algorithm not in unlike]
    rows = [("uplink a run", alike)] if alike else []
    rows += [(f"uplink a run, {algorithm}", [algorithm]) for algorithm in unlike]
    return [
        [name, *(_uplink(comparison, algorithms, spec) for spec in comparison.compressors)] for name, algorithms in rows
    ]


def _ratios(comparison: Comparison, compressor: str) -> dict[str, float]:
    """How many times smaller each algorithm's uplink is than a dense one."""
    groups = [group for group in comparison.groups if group.compressor == compressor]
    return {group.algorithm: statistics.fmean(run.summary["uplink_ratio"] for run in group.runs) for group in groups}


def _uplink(comparison: Comparison, algorithms: list[str], compressor: str) -> str:
    groups = [group for group in comparison.groups if group.compressor == compressor and group.algorithm in algorithms]
    if not groups:
        return ""
    ratios = _ratios(comparison, compressor)
    ratio = statistics.fmean(ratios[group.algorithm] for group in groups)
    return f"{bytes_text(statistics.fmean(group.uplink for group in groups))} ({ratio:.1f} x smaller)"


def markdown_table(comparison: Comparison) -> str:
    """The table as Markdown, in a sweep one a value, each with its headline figures below it; then the paired one.

    The latter needs SciPy, of the extra `[report]`. Between them is the note on settings that differ, if any do.
    """
    lines: list[str] = []
    for name, part in comparison.parts():
        lines += [f"## {name}", ""] if name else []
        lines += [*_markdown(table_rows(part)), "", *(f"- {headline_text(entry)}" for entry in headlines(part)), ""]
    if (note := settings_note(comparison)) is not None:
        lines += [note, ""]
    if importlib.util.find_spec("scipy") is not None:
        from .paired import PAIRED, paired_table

        if pairs := paired_table(comparison):
            lines += [f"## {PAIRED}", "", *_markdown(pairs), ""]
    return "\n".join(lines)


def _markdown(rows: list[list[str]]) -> list[str]:
    """The lines of a table; the first row is its header."""
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [header, "|" + "---|" * len(rows[0]), *body]


def headline_text(entry: dict[str, Any]) -> str:
    """The headline figure in words."""
    setting = f", {entry['setting']}" if "setting" in entry else ""
    name = f"(FedSynSAM - best)/(realset - best) under {entry['compressor']}{setting}"
    if entry["value"] is None:
        return f"{name}: undefined ({entry['reason']})"
    only = f"; seeds {', '.join(map(str, entry['seeds']))} alone" if "seeds" in entry else ""
    return f"{name}: {entry['value']:.2f} (best: {entry['best']}{only})"


def print_table(comparison: Comparison, console: Console) -> None:
    """Print the table and the headline figures, in a sweep those of each value, and the note on settings."""
    for name, part in comparison.parts():
        header, *rows = table_rows(part)
        table = Table(*map(escape, header), box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*map(escape, row))
        if name:
            console.print(f"\n{name}", markup=False)
        console.print(table)
        for entry in headlines(part):
            console.print(headline_text(entry), markup=False)
    if (note := settings_note(comparison)) is not None:
        console.print(note, markup=False)
