"""The cells of a comparison as processes of their own: isolated, one thread each, resumable cell by cell."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.interrupts import Interrupts

POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: its folder, and its settings, with every default filled in."""

    name: str
    path: Path
    config: RunConfig

    @property
    def options(self) -> list[str]:
        """The options of `fedsynsam run` that make it."""
        return options_of(self.config.to_dict())

    def finished(self) -> bool:
        """Whether the run has ended well: its summary is written last."""
        return (self.path / "summary.json").exists()

    def command(self) -> list[str]:
        """The command of the cell; a folder that was begun is resumed."""
        resume = ["--resume"] if (self.path / "config.json").exists() else []
        words = [sys.executable, "-m", "fedsynsam", "run", *self.options, "--threads", "1"]
        return [*words, "--out", str(self.path), *resume]

    def rounds_done(self) -> int:
        """Rounds written so far."""
        try:
            return (self.path / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


def options_of(values: dict[str, Any]) -> list[str]:
    """The shortest options of `fedsynsam run` that give the configuration `values` again."""
    words: list[str] = []
    defaults = RunConfig().to_dict()
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value == defaults.get(name, value):  # of an older version's key nothing can be said any more
            continue
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


@dataclass
class _Job:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def reason(self) -> str:
        """The last line that the failed process wrote: its one-line error, or the end of its traceback."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"


def run_cells(
    cells: list[Cell], jobs: int | None = None, show: Callable[[int, int], None] = lambda done, finished: None
) -> list[tuple[Cell, str]]:
    """Run every cell, `jobs` at a time (by default one a core); return the failed ones, each with its reason.

    Finished cells are kept as they are. `show` is called with the rounds done in all cells and the number of cells at
    their end. SIGINT and SIGTERM raise `Interrupted` once the running processes have written checkpoints and ended;
    the same call goes on where they stopped.
    """
    limit = jobs or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    waiting = [cell for cell in cells if not cell.finished()]
    running, failed, ended = list[_Job](), list[tuple[Cell, str]](), len(cells) - len(waiting)
    interrupts = Interrupts()
    with interrupts.watched(patient=True):
        try:
            while waiting or running:
                interrupts.check()
                while waiting and len(running) < limit:
                    running.append(_start(waiting.pop(0)))
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    ended += 1
                    if job.process.returncode != 0:
                        failed.append((job.cell, job.reason()))
                    job.log.close()
                show(sum(cell.rounds_done() for cell in cells), ended)
        finally:
            for job in running:
                job.process.terminate()
            for job in running:
                job.process.wait()
                job.log.close()
    return failed


def _start(cell: Cell) -> _Job:
    log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with its job)
    # one thread a process: without this each would start as many as there are cores, all idle or in each other's way
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        cell.command(), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
    )
    return _Job(cell, process, log)
