"""Where and with what a benchmark ran: the columns that every row repeats."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from fedsynsam.fl.machine import device_name

ROOT = Path(__file__).resolve().parent.parent


def provenance(device: torch.device) -> dict[str, str]:
    """Return device, driver, versions, commit and date."""
    return {
        "device": device_name(device),
        "driver": _driver() if device.type == "cuda" else "",
        "cuda": (torch.version.cuda or "") if device.type == "cuda" else "",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).split("\n")[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Return the checkout's commit; a copy without its history takes it from FEDSYNSAM_COMMIT."""
    if (given := os.environ.get("FEDSYNSAM_COMMIT", "")) != "":
        return given
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    own = ["--", ".", ":!benchmarks/results"]  # what is measured, not what was measured before
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", *own])
    return _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]) + ("+changes" if changed else "")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
