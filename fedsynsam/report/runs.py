"""Finished runs, read back from their folders."""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..fl.compare import options_of
from ..fl.metrics import RoundMetrics
from ..fl.runfolder import FREE


@dataclass(frozen=True)
class Run:
    """A finished run: what it was (`config`), its rounds, and what it came to (`summary`)."""

    path: Path
    config: dict[str, Any]
    rounds: list[RoundMetrics]
    summary: dict[str, Any]

    @property
    def title(self) -> str:
        """Algorithm, compressor and seed."""
        return f"{self.config['algorithm']}, {self.config['compressor']}, seed {self.config['seed']}"

    @property
    def command(self) -> str:
        """What makes the same numbers again."""
        free = [key for key in FREE if key != "data_dir"]  # without which the data may not be found
        values = {key: value for key, value in self.config.items() if key not in ("versions", *free)}
        return shlex.join(["fedsynsam", "run", *options_of(values)])


def find_runs(folder: Path) -> list[Run]:
    """The finished runs in `folder` or below it, by path; raises ConfigError when there is none."""
    if not folder.is_dir():
        raise ConfigError(f"report: no folder {str(folder)!r}; give the folder of a finished run or comparison")
    runs = [_read(path.parent) for path in sorted(folder.rglob("summary.json"))]
    if not runs:
        raise ConfigError(f"report: no finished run (no summary.json) in {str(folder)!r}")
    return runs


def find_configs(folder: Path) -> list[dict[str, Any]]:
    """The settings of every run in `folder` or below it, finished or not, by path."""
    found = []
    for file in sorted(folder.rglob("config.json")):
        with contextlib.suppress(ConfigError):  # another program's: a run's own is written whole or not at all
            found.append(_config(file.parent))
    return found


def _config(folder: Path) -> dict[str, Any]:
    config = _object(folder / "config.json", ("algorithm", "compressor", "seed", "rounds"))
    if config.get("alpha") == "inf":  # JSON has no infinity
        config["alpha"] = float("inf")
    return config


def _read(folder: Path) -> Run:
    config = _config(folder)
    summary = _object(folder / "summary.json", ("final_accuracy", "last_accuracy", "uplink_bytes", "uplink_ratio"))
    file = folder / "metrics.jsonl"
    try:
        rounds = [RoundMetrics.from_json(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"report: {file} cannot be read: {error}") from error
    if len(rounds) != config["rounds"]:
        raise ConfigError(f"report: {file} is damaged: it holds {len(rounds)} rounds of {config['rounds']}")
    return Run(folder, config, rounds, summary)


def _object(file: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object in `file`, which must have `keys`."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"report: {file} cannot be read: {error}") from error
    missing = [key for key in keys if key not in values] if isinstance(values, dict) else list(keys)
    if missing:
        raise ConfigError(f"report: {file} is damaged: it has no {missing[0]!r}")
    return values
