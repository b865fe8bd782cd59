"""What a comparison leaves: results.csv, table.md, headline.json, figures, report.html, and a table in the terminal."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..fl.tensorfile import write_atomically
from .comparison_figures import save_comparison_figures
from .groups import Comparison, Group, headlines
from .page import comparison_page, why_no_page
from .text import bytes_text, percent

ALIKE = 0.05  # relative difference up to which two uplinks are told in one row

COLUMNS = [
    "algorithm",
    "compressor",
    "seed",
    "rho",
    "dataset",
    "partition",
    "alpha",
    "clients",
    "cohort",
    "rounds",
    "local_steps",
    "batch_size",
    "lr",
    "model",
    "final_accuracy",
    "last_accuracy",
    "uplink_bytes",
    "downlink_bytes",
    "uplink_ratio",
    "sharpness",
    "seconds",
    "config_sha256",
    "fedsynsam",
    "python",
    "torch",
    "numpy",
    "commit",
]


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


def results_csv(comparison: Comparison) -> str:
    """One row a cell, with what it takes to make it again, and a column for a swept setting."""
    text = io.StringIO()
    columns = COLUMNS + [key for key in [comparison.swept] if key is not None and key not in COLUMNS]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for group in comparison.groups:
        for run in group.runs:
            config = {key: value for key, value in run.config.items() if key != "versions"}
            digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
            cohort = run.summary["dense_uplink_bytes"] // (4 * run.summary["parameters"] * run.summary["rounds"])
            versions = {"cohort": cohort, "config_sha256": digest, **run.config["versions"]}
            writer.writerow({**config, **run.summary, **versions})
    return text.getvalue()


def table_rows(comparison: Comparison) -> list[list[str]]:
    """Header and rows: accuracy in percent (mean ± standard deviation over seeds) an algorithm and compressor.

    Of a comparison without a sweep, or of one of the `parts()` of a sweep.
    """
    rows = [["accuracy, %", *comparison.compressors]]
    for algorithm in comparison.algorithms:
        cells = [comparison.group(algorithm, compressor) for compressor in comparison.compressors]
        rows.append([algorithm, *("" if cell is None else _accuracy(cell, len(comparison.seeds)) for cell in cells)])
    return [*rows, *_uplink_rows(comparison)]


def _accuracy(group: Group, seeds: int) -> str:
    """Mean and spread, and of how many of the comparison's seeds if not of all."""
    missing = "" if len(group.runs) == seeds else f" ({len(group.runs)} of {seeds} seeds)"
    return percent(group.mean, group.spread) + missing


def _uplink_rows(comparison: Comparison) -> list[list[str]]:
    """A row of what a run's clients send under each compressor, and one for each algorithm that sends more or less."""
    usual = {spec: statistics.median(_ratios(comparison, spec).values()) for spec in comparison.compressors}
    unlike = [
        algorithm
        for algorithm in comparison.algorithms
        if any(
            abs(_ratios(comparison, spec).get(algorithm, usual[spec]) / usual[spec] - 1) > ALIKE
            for spec in comparison.compressors
        )
    ]
    alike = [algorithm for algorithm in comparison.algorithms if algorithm not in unlike]
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

    The latter needs SciPy, of the extra `[report]`.
    """
    lines: list[str] = []
    for name, part in comparison.parts():
        lines += [f"## {name}", ""] if name else []
        lines += [*_markdown(table_rows(part)), "", *(f"- {headline_text(entry)}" for entry in headlines(part)), ""]
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
    """Print the table and the headline figures, in a sweep those of each value."""
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
