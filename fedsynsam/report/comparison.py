"""A comparison's numbers: one row a cell, mean and spread over seeds, and the headline figure."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..fl.tensorfile import write_atomically
from .figures import save_comparison_figures
from .page import comparison_page, why_no_page
from .runs import Run
from .text import bytes_text, percent

BASELINES = ("fedavg", "fedsam", "fedlesam")
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


@dataclass(frozen=True)
class Group:
    """The runs of one algorithm with one compressor over all seeds."""

    algorithm: str
    compressor: str
    runs: tuple[Run, ...]

    @property
    def accuracies(self) -> list[float]:
        """Each seed's accuracy: the mean over the evaluations of the last fifth of the rounds."""
        return [run.summary["final_accuracy"] for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the accuracy over the seeds; None for a single seed."""
        return statistics.stdev(self.accuracies) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """All groups, in the order in which the runs were given."""

    groups: tuple[Group, ...]

    @property
    def compressors(self) -> list[str]:
        """The compressors, each once."""
        return list(dict.fromkeys(group.compressor for group in self.groups))

    @property
    def algorithms(self) -> list[str]:
        """The algorithms, each once."""
        return list(dict.fromkeys(group.algorithm for group in self.groups))

    def group(self, algorithm: str, compressor: str) -> Group | None:
        """The group of `algorithm` with `compressor`, if it was run."""
        found = [group for group in self.groups if (group.algorithm, group.compressor) == (algorithm, compressor)]
        return found[0] if found else None


def read_cells(runs: list[Run]) -> Comparison:
    """Group finished runs by algorithm and compressor."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.config["algorithm"], run.config["compressor"]), []).append(run)
    return Comparison(tuple(Group(*key, tuple(members)) for key, members in grouped.items()))


def headline(comparison: Comparison, compressor: str) -> dict[str, Any]:
    """The share of the possible gain that FedSynSAM takes: (FedSynSAM − best)/(realset − best), of mean accuracies.

    best = the best of FedAvg, FedSAM and FedLESAM; realset takes its perturbation from as many real images. The value
    is None, with a `reason`, where a preset is missing or realset is no better than `best`.
    """
    means = {group.algorithm: group.mean for group in comparison.groups if group.compressor == compressor}
    figures: dict[str, Any] = {"compressor": compressor, "accuracy": means, "value": None}
    missing = [name for name in (*BASELINES, "fedsynsam", "realset") if name not in means]
    if missing:
        return {**figures, "reason": f"not run: {', '.join(missing)}"}
    best = max(BASELINES, key=means.__getitem__)
    figures["best"] = best
    room = means["realset"] - means[best]
    if room <= 0:
        return {**figures, "reason": f"realset is no better than {best}: nothing to be gained"}
    return {**figures, "value": (means["fedsynsam"] - means[best]) / room}


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
    headlines = [headline(comparison, compressor) for compressor in comparison.compressors]
    table = markdown_table(comparison)
    write_atomically(out / "results.csv", results_csv(comparison).encode())
    write_atomically(out / "table.md", table.encode())
    write_atomically(out / "headline.json", json.dumps(headlines, indent=2).encode() + b"\n")
    figures = save_comparison_figures(comparison, out)
    written = [out / "results.csv", out / "table.md", out / "headline.json", *figures]
    if why_no_page() is None:
        page = comparison_page(comparison, [headline_text(entry) for entry in headlines], command)
        write_atomically(out / "report.html", page.encode())
        written.append(out / "report.html")
    return written


def results_csv(comparison: Comparison) -> str:
    """One row a cell, with what it takes to make it again."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
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
    """Header and rows: accuracy in percent (mean ± standard deviation over seeds) an algorithm and compressor."""
    rows = [["accuracy, %", *comparison.compressors]]
    for algorithm in comparison.algorithms:
        cells = [comparison.group(algorithm, compressor) for compressor in comparison.compressors]
        rows.append([algorithm, *("" if cell is None else percent(cell.mean, cell.spread) for cell in cells)])
    uplink = ["uplink a run"]
    for compressor in comparison.compressors:
        runs = [run for group in comparison.groups if group.compressor == compressor for run in group.runs]
        total = statistics.fmean(run.summary["uplink_bytes"] for run in runs)
        ratio = statistics.fmean(run.summary["uplink_ratio"] for run in runs)
        uplink.append(f"{bytes_text(total)} ({ratio:.1f} x smaller)")
    return [*rows, uplink]


def markdown_table(comparison: Comparison) -> str:
    """The table as Markdown, with the headline figures below it."""
    header, *rows = table_rows(comparison)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    notes = [headline_text(headline(comparison, compressor)) for compressor in comparison.compressors]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def headline_text(entry: dict[str, Any]) -> str:
    """The headline figure in words."""
    name = f"(FedSynSAM - best)/(realset - best) under {entry['compressor']}"
    if entry["value"] is None:
        return f"{name}: undefined ({entry['reason']})"
    return f"{name}: {entry['value']:.2f} (best: {entry['best']})"


def print_table(comparison: Comparison, console: Console) -> None:
    """Print the table and the headline figures."""
    header, *rows = table_rows(comparison)
    table = Table(*map(escape, header), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for compressor in comparison.compressors:
        console.print(headline_text(headline(comparison, compressor)), markup=False)
