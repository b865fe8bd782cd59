"""The folder of a run: `config.json`, `metrics.jsonl`, `summary.json`, `checkpoint/`."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy
import torch

from fedsynsam.errors import CheckpointError, ConfigError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.fl.tensorfile import sync, write_atomically

FILES = ("config.json", "metrics.jsonl", "summary.json")
# These never change a number: a run may go on with more threads, say, or write checkpoints more often.
FREE = ("threads", "checkpoint_every", "data_dir", "residual_store", "capture")


class RunFolder:
    """Writes one run, on data with the checksum `crc32`, to `path`, which no other process may write meanwhile.

    Raises `ConfigError` when the folder holds another run or something else, and when another process writes it.
    """

    def __init__(self, path: Path, config: RunConfig, crc32: str, *, resume: bool) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint"
        if resume and not (path / "config.json").exists():
            raise ConfigError(f"resume: {str(path)!r} holds no run; give the folder of an interrupted one")
        make_folder(path)
        self._lock = _locked(path)
        try:
            self._open(config, crc32, resume=resume)
        except BaseException:
            self.close()
            raise

    def _open(self, config: RunConfig, crc32: str, *, resume: bool) -> None:
        path, stored = self.path, self.path / "config.json"
        killed_at_its_start = set(path.glob("config.json*.part"))
        if stored.exists():
            if not resume:
                raise ConfigError(f"out: {str(path)!r} already holds a run; give another folder, or resume it")
            check_same(path, config, crc32)
        elif set(path.iterdir()) - killed_at_its_start:
            raise ConfigError(f"out: {str(path)!r} is not empty and holds no run; give another folder")
        for name in FILES:
            for cut_off in path.glob(f"{name}*.part"):
                cut_off.unlink()
        if not stored.exists():
            checksums = {"dataset_crc32": crc32, **synthetic_checksum(config)}
            content = {**config.to_dict(), **checksums, "versions": versions()}
            write_atomically(stored, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        """Let other processes write the folder."""
        os.close(self._lock)

    @property
    def finished(self) -> bool:
        """Whether the run has ended well: its summary is written last."""
        return (self.path / "summary.json").exists()

    def metrics(self, rounds: int) -> list[RoundMetrics]:
        """The first `rounds` rounds; what a crash left behind them is not looked at."""
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_bytes().splitlines()[:rounds] if rounds else []
            rows = [RoundMetrics.from_json(line.decode()) for line in lines]
            if [row.round for row in rows] != list(range(1, rounds + 1)):
                raise ValueError(f"it lacks some of the {rounds} rounds of the checkpoint")
            return rows
        except (OSError, ValueError) as error:
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


def make_folder(path: Path) -> None:
    """Make the folder `path` that `--out` names, if it is not there; raises `ConfigError` when that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"out: {str(path)!r} is a file; give a folder") from None
    except OSError as error:
        raise ConfigError(f"out: the folder {str(path)!r} cannot be made ({error.strerror}); give another") from error


def check_same(path: Path, config: RunConfig, crc32: str | None = None) -> None:
    """Raise `ConfigError` unless the run in folder `path` began with these settings and files and, if given, data."""
    stored = path / "config.json"
    before = _read_config(stored, "resume: ")
    now = config.to_dict()
    if config.engine in (None, "auto"):  # whichever was chosen then
        now["engine"] = before.get("engine")
    if key := differing_key(before, now):
        raise ConfigError(
            f"resume: {stored} has {key}={before.get(key)!r}, not {now[key]!r}; a run goes on with the settings that "
            "it began with, or begins anew in another folder"
        )
    for key, value in synthetic_checksum(config).items():
        if before.get(key, value) != value:
            raise ConfigError(
                f"synthetic: {config.synthetic!r} holds another set than when the run in {path} began; bring that one "
                "back, or begin anew in another folder"
            )
    if crc32 is not None:
        check_data(path, crc32)


def check_data(path: Path, crc32: str) -> None:
    """Raise `ConfigError` unless the run in folder `path` began with data of this checksum."""
    before = _read_config(path / "config.json", "")
    if before.get("dataset_crc32", crc32) != crc32:
        raise ConfigError(
            f"dataset: {before['dataset']!r} holds other data than when the run in {path} began; bring those back, or "
            "begin anew in another folder"
        )


def synthetic_checksum(config: RunConfig) -> dict[str, str]:
    """`synthetic_crc32` of the file that a run begins with; {} without one, or where it is gone (a run may go on)."""
    if config.synthetic is None:
        return {}
    try:
        return {"synthetic_crc32": f"{zlib.crc32(Path(config.synthetic).read_bytes()):08x}"}
    except OSError:
        return {}


def differing_key(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key whose value would give other numbers, or None."""
    return next((key for key in now if key not in FREE and before.get(key) != now[key]), None)


def stored_engine(path: Path) -> str | None:
    """The engine that the run in folder `path` was begun with, or None when it was not begun."""
    return load_config(path).engine if (path / "config.json").exists() else None


def load_config(path: Path) -> RunConfig:
    """The configuration of the run in folder `path`; raises `ConfigError` when there is none."""
    values = _read_config(path / "config.json", "")
    for key in ("dataset_crc32", "synthetic_crc32", "versions"):
        values.pop(key, None)
    return RunConfig.from_dict(values)


def _read_config(file: Path, what_for: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
        return values
    except FileNotFoundError as error:
        raise ConfigError(f"{what_for}{str(file.parent)!r} holds no run (there is no {file.name})") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what_for}{file} is damaged: {error}") from error


def _locked(path: Path) -> int:
    """A descriptor of the folder `path` that locks it for this process, until it is closed or the process ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"out: another process is writing the run in {str(path)!r}; wait until it ends") from None
    except OSError:  # a file system without locks
        pass
    return descriptor


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
    """The commit of the checkout that this file belongs to; a repository around it may be somebody else's."""
    here = Path(__file__)
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, timeout=10, check=False
            )
            if done.returncode != 0:
                return None
        return done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return None
