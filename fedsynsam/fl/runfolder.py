"""The folder of a run: `config.json`, `metrics.jsonl`, `summary.json`, `checkpoint/`."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch

from fedsynsam.errors import CheckpointError, ConfigError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.fl.tensorfile import sync, write_atomically

# These never change a number: a run may go on with more threads, say, or write checkpoints more often.
FREE = ("threads", "checkpoint_every", "data_dir", "residual_store", "capture")


class RunFolder:
    """Writes one run to `path`; raises `ConfigError` when it already holds another run."""

    def __init__(self, path: Path, config: RunConfig, *, resume: bool) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint"
        stored = path / "config.json"
        if path.exists() and not path.is_dir():
            raise ConfigError(f"out: {str(path)!r} is a file; give a folder")
        if stored.exists():
            if not resume:
                raise ConfigError(f"out: {str(path)!r} already holds a run; give another folder, or resume it")
            self._check_same(stored, config)
        elif path.exists() and any(entry.suffix != ".part" for entry in path.iterdir()):  # cut off at its very start
            raise ConfigError(f"out: {str(path)!r} is not empty and holds no run; give another folder")
        elif resume:
            raise ConfigError(f"resume: {str(path)!r} holds no run; give the folder of an interrupted one")
        path.mkdir(parents=True, exist_ok=True)
        if not stored.exists():
            content = json.dumps({**config.to_dict(), "versions": versions()}, indent=2, allow_nan=False)
            write_atomically(stored, content.encode() + b"\n")

    def metrics(self) -> list[RoundMetrics]:
        """The rounds written so far; a last line cut off by a crash is left out."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        lines = [line for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        try:
            return [RoundMetrics.from_json(line) for line in lines]
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); start the run anew") from error

    def keep_rounds(self, rounds: list[RoundMetrics]) -> None:
        """Make `rounds` the whole of `metrics.jsonl`."""
        write_atomically(self.path / "metrics.jsonl", "".join(row.to_json() + "\n" for row in rounds).encode())

    def append(self, row: RoundMetrics) -> None:
        """Add one round to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(row.to_json() + "\n")

    def sync_metrics(self) -> None:
        """Make the rounds written so far survive a power cut, before a checkpoint says that they are done."""
        if (file := self.path / "metrics.jsonl").exists():
            sync(file)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")

    @staticmethod
    def _check_same(stored: Path, config: RunConfig) -> None:
        try:
            before = json.loads(stored.read_text())
        except ValueError as error:
            raise ConfigError(f"resume: {stored} is damaged: {error}") from error
        now = config.to_dict()
        if config.engine in (None, "auto"):  # whichever was chosen then
            now["engine"] = before.get("engine")
        if key := differing_key(before, now):
            raise ConfigError(
                f"resume: {stored} has {key}={before.get(key)!r}, not {now[key]!r}; give the same or a new folder"
            )


def differing_key(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key whose value would give other numbers, or None."""
    return next((key for key in now if key not in FREE and before.get(key) != now[key]), None)


def stored_engine(path: Path) -> str | None:
    """The engine that the run in folder `path` was begun with, or None when it was not begun."""
    return load_config(path).engine if (path / "config.json").exists() else None


def load_config(path: Path) -> RunConfig:
    """The configuration of the run in folder `path`; raises `ConfigError` when there is none."""
    try:
        values = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no readable config.json of a run: {error}") from error
    values.pop("versions", None)
    return RunConfig.from_dict(values)


def versions() -> dict[str, str | None]:
    """Versions of what computed a run, and the commit when it ran from a git checkout."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("fedsynsam")
    except PackageNotFoundError:  # run from a source tree that was never installed
        own = "unknown"
    return {
        "fedsynsam": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
