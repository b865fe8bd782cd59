"""`fedsynsam compare`: algorithms x compressors x seeds, each cell a run of its own; then table, figures and page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..compress import compressor
from ..errors import ConfigError, SpecError
from ..fl.algorithm import resolve
from ..fl.compare import Cell, run_cells
from ..fl.config import ALGORITHMS, RunConfig
from ..fl.runfolder import RunFolder
from ..report.comparison import print_table, read_cells, write_comparison
from ..report.page import why_no_page
from ..report.runs import find_runs
from .arguments import defaults_from, options_of, parse
from .run import file_name


@dataclass(frozen=True)
class CompareCommand:
    """Algorithms x compressors x seeds. Repeat the command to go on: finished cells are kept.

    Each cell is a run on one thread, in OUT/ALGORITHM/COMPRESSOR/seed-S. Written to OUT: results.csv, table.md,
    headline.json, figures, report.html.
    """

    settings: tyro.conf.OmitArgPrefixes[RunConfig] = field(default_factory=RunConfig)
    """Settings of every cell (algorithm, compressor and seed come from the lists)."""
    algorithms: str = "fedavg,fedsam,fedlesam,fedsynsam,realset"
    """Comma list of algorithms."""
    compressors: str = "none,topk:0.01"
    """Comma list of compressor specs (commas inside brackets do not split)."""
    seeds: str = "2"
    """A number of seeds (0, 1, …), or a comma list of them (`3,` is seed 3 alone)."""
    rhos: str = ""
    """Radius of single algorithms, `fedsam=0.1,fedsynsam=0.2`; the others take --rho or their own default."""
    jobs: int | None = None
    """Cells at the same time; by default as many as there are cores."""
    config: Path | None = None
    """TOML file with settings; options on the command line go before it."""
    out: Path = Path("runs/compare")
    """Folder of the comparison."""


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam compare`; return 0, or 1 if a cell failed."""
    for word in argv:
        if word.split("=")[0] in ("--algorithm", "--compressor", "--seed"):
            raise ConfigError(f"{word.split('=')[0]}: compare takes the list {word.split('=')[0]}s instead")
    command = parse(CompareCommand(settings=defaults_from(argv)), argv, "fedsynsam compare")
    cells = cells_of(command)
    failures = _run(cells, command.jobs)
    for cell, reason in failures:
        print(f"fedsynsam: {cell.name} failed: {reason}", file=sys.stderr)
    finished = [run for cell in cells for run in (find_runs(cell.path) if cell.finished() else [])]
    if finished:
        comparison = read_cells(finished)
        written = write_comparison(comparison, command.out, command=shlex.join(["fedsynsam", "compare", *argv]))
        print_table(comparison, Console(highlight=False, soft_wrap=True))
        print("\n".join(map(str, written)))
        if (missing := why_no_page()) is not None:
            print(missing, file=sys.stderr)
    return 1 if failures else 0


def cells_of(command: CompareCommand) -> list[Cell]:
    """Every cell of the comparison, checked before any runs."""
    rhos = _rhos(command.rhos)
    cells: list[Cell] = []
    for seed in _seeds(command.seeds):
        for spec in split_specs(command.compressors):
            try:
                canonical = str(compressor(spec))
            except SpecError as error:
                raise ConfigError(f"compressors: {error}") from error
            for algorithm in _names(command.algorithms):
                changes: dict[str, object] = {"algorithm": algorithm, "compressor": canonical, "seed": seed}
                if algorithm in rhos:
                    changes["rho"] = rhos[algorithm]
                config = resolve(command.settings.replace(**changes))
                path = command.out / algorithm / file_name(canonical) / f"seed-{seed}"
                if (path / "config.json").exists():
                    RunFolder(path, config, resume=True)  # refuses a folder that holds a run of other settings
                cells.append(
                    Cell(f"{algorithm} {canonical} seed {seed}", path, config.rounds, tuple(options_of(config)))
                )
    return cells


def split_specs(text: str) -> list[str]:
    """Split a comma list of specs at the commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ALGORITHMS:
            raise ConfigError(f"algorithms: unknown value {name!r}; known: {', '.join(ALGORITHMS)}")
    if not names:
        raise ConfigError("algorithms: the list is empty")
    return names


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"seeds: {text!r} is neither a number of seeds nor a comma list of them") from None
    if "," not in text and len(seeds) == 1:
        seeds = list(range(seeds[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds: {text!r} must give at least one seed, none negative, none twice")
    return seeds


def _rhos(text: str) -> dict[str, float]:
    rhos: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            rhos[_names(name)[0]] = float(value)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"rhos: {part!r} is not ALGORITHM=NUMBER") from None
    return rhos


def _run(cells: list[Cell], jobs: int | None) -> list[tuple[Cell, str]]:
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: {jobs} is out of range; give at least 1")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("cells", total=sum(cell.rounds for cell in cells))

        def show(done: int, finished: int) -> None:
            progress.update(task, completed=done, description=f"cells {finished}/{len(cells)}")

        return run_cells(cells, jobs, show)
