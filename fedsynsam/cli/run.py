"""`fedsynsam run`: one federated run, its progress, its folder and its curves."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError, FedSynSamError, RankError
from ..fl.config import RunConfig
from ..fl.distributed import Group, local_rank, ranks
from ..fl.interrupts import Interrupted
from ..fl.machine import choose_device
from ..fl.metrics import RunResult
from ..fl.runfolder import load_config
from ..fl.simulation import Simulation
from ..report.figures import save_curves
from ..report.pictures import save_synthetic_picture
from ..report.text import bytes_text
from . import complain
from .arguments import config_file, defaults_from, parse
from .progress import progress_of


@dataclass(frozen=True)
class RunCommand:
    """One federated run, written to a folder: config.json, metrics.jsonl, summary.json, curves.png, checkpoint/.

    FedSynSAM adds synthetic.safetensors, which another run may begin with (--synthetic), and synthetic.png.
    """

    settings: tyro.conf.OmitArgPrefixes[RunConfig] = field(default_factory=RunConfig)
    """What decides the run's numbers."""
    config: Path | None = None
    """TOML file with settings; options on the command line go before it."""
    out: Path | None = None
    """Folder of the run; by default a new one under runs/."""
    resume: bool = False
    """Go on with the interrupted run in --out, from its last checkpoint, with its settings."""


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam run`; return the exit code."""
    command = parse(RunCommand(settings=defaults(argv)), argv, "fedsynsam run")
    if command.resume and command.out is None:
        raise ConfigError("resume: say which run to go on with by --out FOLDER")
    with ranks(choose_device(command.settings.device, local_rank())) as group:
        made: Path | None = None
        try:
            if command.out is None:
                made = Path(group.on_first(lambda: str(new_folder(command.settings)).encode()).decode())
            out = command.out or made
            assert out is not None
            result = run(command, out, group)
        except (FedSynSamError, OSError) as error:
            speaks = group.speaks_for(error)
            if isinstance(error, RankError):
                if speaks:
                    raise
                return 1
            if speaks:  # here, while the others still wait for this process: when it leaves them, all end
                complain(str(error))
            return 2
        finally:
            if made is not None and group.rank == 0:
                with contextlib.suppress(OSError):  # where the run was refused they are empty
                    made.rmdir()
                    made.parent.rmdir()
        if group.rank == 0:
            title = f"{result.config.algorithm}, {result.config.compressor}"
            save_curves(result.rounds, out / "curves.png", title=title)
            save_synthetic_picture(out)
            print_summary(result, out)
    return 0


def defaults(argv: Sequence[str]) -> RunConfig:
    """The settings that the other options change: those of the run that is resumed, or of `--config`, or none."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--resume", action="store_true")
    finder.add_argument("--out", type=Path)
    with contextlib.suppress(argparse.ArgumentError):  # tyro says what is wrong
        given = finder.parse_known_args(list(argv))[0]
        if given.resume and given.out and config_file(argv) is None and (given.out / "config.json").exists():
            return load_config(given.out)
    return defaults_from(argv)


def run(command: RunCommand, out: Path, group: Group) -> RunResult:
    """Run with progress; an interruption, and the loss of a process, say how to go on."""
    simulation = Simulation(command.settings, out, resume=command.resume, group=group)
    kept = command.settings.checkpoint_every > 0
    advice = f"go on with the same command and --out {out} --resume" if kept else "there is no checkpoint to go on from"
    try:
        with progress_of(command.settings, quiet=group.rank > 0) as progress:
            return simulation.run(on_round=progress.on_round, on_step=progress.on_step, on_note=progress.on_note)
    except Interrupted as interrupt:
        raise Interrupted(interrupt.signum, advice) from None
    except RankError as error:
        raise RankError(f"{error}; {advice}" if simulation.opened else str(error)) from error


def new_folder(config: RunConfig) -> Path:
    """Make the first folder runs/ALGORITHM-COMPRESSOR-seedS[-N] that is free."""
    stem = f"{config.algorithm}-{file_name(config.compressor)}-seed{config.seed}"
    for number in itertools.count(1):
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("numbers do not end")


def file_name(spec: str) -> str:
    """A compressor spec as part of a file name: letters, digits, dots, dashes and underscores."""
    return "".join(char if char.isalnum() or char in "._" else "-" for char in spec).strip("-")


def print_summary(result: RunResult, out: Path) -> None:
    """Print what a run came to, as a short table."""
    summary = result.summary
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "accuracy, last fifth of the rounds": f"{100 * summary['final_accuracy']:.2f} %",
        "accuracy, last round": f"{100 * summary['last_accuracy']:.2f} %",
        "uplink": f"{bytes_text(summary['uplink_bytes'])}, {summary['uplink_ratio']:.1f} x smaller than dense float32",
        "time": f"{summary['seconds']:.1f} s for {summary['rounds']} rounds",
        "folder": str(out),
        "curves": str(out / "curves.png"),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    Console(highlight=False, soft_wrap=True).print(table)
