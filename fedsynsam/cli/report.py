"""`fedsynsam report`: figures and page again, from what finished runs left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..errors import ConfigError
from ..report.comparison import write_comparison
from ..report.figures import save_curves
from ..report.groups import read_cells
from ..report.page import why_no_page
from ..report.pictures import save_synthetic_picture
from ..report.runs import find_configs, find_runs
from .arguments import parse


@dataclass(frozen=True)
class ReportCommand:
    """Figures and page again: curves.png (and synthetic.png) in each run's folder; table, figures and report.html for a
    comparison, whose table also names runs that were begun and not finished."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs or comparisons."""
    out: Path | None = None
    """Folder of the comparison's table, figures and page; by default the one given, if it holds several runs."""


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam report`; return the exit code."""
    command = parse(ReportCommand(), argv, "fedsynsam report")
    if not command.folders:
        raise ConfigError("report: give at least one folder of a finished run or comparison")
    found = {run.path.resolve(): run for folder in command.folders for run in find_runs(folder)}
    runs = list(found.values())
    for run in runs:
        save_curves(run.rounds, run.path / "curves.png", title=run.title)
        print(run.path / "curves.png")
        if (picture := save_synthetic_picture(run.path)) is not None:
            print(picture)
    out = command.out or (command.folders[0] if len(command.folders) == 1 and len(runs) > 1 else None)
    if out is not None:
        planned = [config for folder in command.folders for config in find_configs(folder)]
        for path in write_comparison(read_cells(runs, planned=planned, lost="unfinished"), out):
            print(path)
        if (missing := why_no_page()) is not None:
            print(missing, file=sys.stderr)
    return 0
