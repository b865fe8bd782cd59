"""Finished runs, read back from their folders."""

from __future__ import annotations

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
        values = {key: value for key, value in self.config.items() if key not in ("versions", *FREE)}
        return shlex.join(["fedsynsam", "run", *options_of(values)])


def find_runs(folder: Path) -> list[Run]:
    """The finished runs in `folder` or below it, by path; raises ConfigError when there is none."""
    if not folder.is_dir():
        raise ConfigError(f"report: no folder {str(folder)!r}; give the folder of a finished run or comparison")
    runs = [_read(path.parent) for path in sorted(folder.rglob("summary.json"))]
    if not runs:
        raise ConfigError(f"report: no finished run (no summary.json) in {str(folder)!r}")
    return runs


def _read(folder: Path) -> Run:
    try:
        config = json.loads((folder / "config.json").read_text())
        if config.get("alpha") == "inf":  # JSON has no infinity
            config["alpha"] = float("inf")
        summary = json.loads((folder / "summary.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return Run(folder, config, [RoundMetrics.from_json(line) for line in lines], summary)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"report: the run in {str(folder)!r} cannot be read: {error}") from error
