"""`fedsynsam info`: what is installed, built and usable here."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from ..fl.config import DATASETS
from ..fl.data import load_dataset
from ..fl.machine import device_name
from ..ops import backend
from .arguments import parse


@dataclass(frozen=True)
class InfoCommand:
    """Versions, devices, which backends are built and usable, and why one is not."""


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam info`; return the exit code."""
    parse(InfoCommand(), argv, "fedsynsam info")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts():
        table.add_row(name, Text(value))
    Console(highlight=False, soft_wrap=True).print(table)
    return 0


def facts() -> list[tuple[str, str]]:
    """What `fedsynsam info` prints: pairs of a name and a sentence."""
    rows = [("python", platform.python_version())]
    rows += [(name, _version(name)) for name in ("fedsynsam", "torch", "triton", "numpy", "safetensors")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = f"{device_name(torch.device('cpu'))} ({platform.machine()})"
    rows.append(("processor", f"{processor}, {cores} cores, {torch.get_num_threads()} threads in PyTorch"))
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows.append(("GPU", ", ".join(gpus) or "none that PyTorch sees"))
    for name in backend.NAMES:
        reason = backend.why_not(name)
        rows.append((f"backend {name}", "usable" if reason is None else f"not usable: {reason}"))
    rows += [(f"data {name}", _data(name)) for name in DATASETS]
    return rows


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _data(name: str) -> str:
    try:
        dataset = load_dataset(name, None)
    except ConfigError as error:
        return f"not found: {error}"
    return f"{len(dataset.y_train)} training and {len(dataset.y_test)} test images"
