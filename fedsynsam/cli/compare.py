"""`fedsynsam compare`: algorithms x compressors x seeds (x a swept setting), each cell a run of its own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..compress import compressor
from ..errors import ConfigError, SpecError
from ..fl.algorithm import resolve, unlearned_note
from ..fl.compare import Cell, run_cells
from ..fl.config import RunConfig
from ..fl.interrupts import Interrupted
from ..fl.runfolder import check_same, make_folder
from ..report.comparison import print_table, write_comparison
from ..report.groups import read_cells
from ..report.page import why_no_page
from ..report.runs import find_runs
from ..report.text import value_text
from .arguments import config_file, defaults_from, parse
from .run import file_name
from .study import algorithms_of, compare_table, rhos_of, seeds_of, split_specs, sweep_of


@dataclass(frozen=True)
class CompareCommand:
    """Algorithms x compressors x seeds. Repeat the command to go on: finished cells are kept.

    Each cell is a run on one thread, in OUT/ALGORITHM/COMPRESSOR/[KEY-VALUE/]seed-S. Written to OUT: results.csv,
    table.md, headline.json, figures, report.html.
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
    sweep: str = ""
    """A setting and the values it takes in turn, `alpha=0.05,0.1,inf`: each makes cells of its own."""
    jobs: int | None = None
    """Cells at the same time; by default as many as there are cores."""
    config: Path | None = None
    """TOML file with settings, and the lists above in a table [compare]; options on the command line go before it."""
    out: Path = Path("runs/compare")
    """Folder of the comparison."""


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam compare`; return 0, or 1 if a cell failed."""
    command = command_of(argv)
    cells = cells_of(command)
    if command.jobs is not None and command.jobs < 1:
        raise ConfigError(f"jobs: {command.jobs} is out of range; give at least 1")
    if (command.out / "config.json").exists():
        raise ConfigError(f"out: {str(command.out)!r} holds a run; give another folder for the comparison")
    make_folder(command.out)
    for note in dict.fromkeys(unlearned_note(cell.config) for cell in cells):
        if note is not None:
            print(note, file=sys.stderr)
    failures = _run(cells, command.jobs)
    for cell, reason in failures:
        print(f"fedsynsam: {cell.name} failed: {reason}", file=sys.stderr)
    found = [find_runs(cell.path) if cell.finished() else [] for cell in cells]
    if any(found):
        sweep, finished = sweep_of(command.sweep), [run for runs in found for run in runs]
        planned = [runs[0].config if runs else vars(cell.config) for cell, runs in zip(cells, found, strict=True)]
        comparison = read_cells(finished, swept=sweep.key if sweep else None, planned=planned)
        written = write_comparison(comparison, command.out, command=shlex.join(["fedsynsam", "compare", *argv]))
        print_table(comparison, Console(highlight=False, soft_wrap=True))
        print("\n".join(map(str, written)))
        if (missing := why_no_page()) is not None:
            print(missing, file=sys.stderr)
    return 1 if failures else 0


def command_of(argv: Sequence[str]) -> CompareCommand:
    """The command that the words of `argv` make, with what their `--config FILE` says."""
    for word in argv:
        if word.split("=")[0] in ("--algorithm", "--compressor", "--seed"):
            raise ConfigError(f"{word.split('=')[0]}: compare takes the list {word.split('=')[0]}s instead")
    default = replace(CompareCommand(settings=defaults_from(argv)), **compare_table(config_file(argv)))
    return parse(default, argv, "fedsynsam compare")


def cells_of(command: CompareCommand) -> list[Cell]:
    """Every cell of the comparison, checked before any runs."""
    rhos, sweep = rhos_of(command.rhos), sweep_of(command.sweep)
    if rhos and sweep and sweep.key == "rho":
        raise ConfigError("sweep: rho is the radius of all algorithms then; leave rhos empty")
    return [
        _cell(command, {"algorithm": algorithm, "compressor": spec, "seed": seed, **own_rho}, swept)
        for seed in seeds_of(command.seeds)
        for swept in ([{sweep.key: value} for value in sweep.values] if sweep else [{}])
        for spec in _specs(command.compressors)
        for algorithm in algorithms_of(command.algorithms)
        for own_rho in ([{"rho": rhos[algorithm]}] if algorithm in rhos else [{}])
    ]


def _cell(command: CompareCommand, changes: dict[str, Any], swept: dict[str, Any]) -> Cell:
    """The cell of the settings with `changes` and `swept` made."""
    config = resolve(command.settings.replace(**changes, **swept))
    value = [f"{key}={value_text(value)}" for key, value in swept.items()]
    folders = [config.algorithm, file_name(config.compressor), *map(file_name, value), f"seed-{config.seed}"]
    path = command.out.joinpath(*folders)
    if (path / "config.json").exists():
        check_same(path, config)
    name = " ".join([config.algorithm, config.compressor, *value, f"seed {config.seed}"])
    return Cell(name, path, config)


def _specs(text: str) -> list[str]:
    """The canonical specs of a comma list of compressors, each once."""
    try:
        specs = dict.fromkeys(str(compressor(spec)) for spec in split_specs(text))
    except SpecError as error:
        raise ConfigError(f"compressors: {error}") from error
    if not specs:
        raise ConfigError("compressors: the list is empty")
    return list(specs)


def _run(cells: list[Cell], jobs: int | None) -> list[tuple[Cell, str]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("cells", total=sum(cell.config.rounds for cell in cells))

        def show(done: int, finished: int) -> None:
            progress.update(task, completed=done, description=f"cells {finished}/{len(cells)}")

        try:
            return run_cells(cells, jobs, show)
        except Interrupted as interrupt:
            raise Interrupted(interrupt.signum, "repeat the same command to go on") from None
