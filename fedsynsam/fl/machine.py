"""Where a run computes: on which device, with how many threads."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from fedsynsam.errors import ConfigError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.distributed import Group


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, PyTorch's operators use one thread: a client is a thread, and results cannot depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str, local_rank: int | None) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one. Raises `ConfigError` when it is not there.

    Of several processes on a machine each takes a GPU of its own, unless `name` gives a number.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if count else "cpu") if name == "auto" else name)
    if device.type == "cuda" and device.index is None and local_rank is not None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device: {name!r} is not there (PyTorch sees {count} CUDA devices); use cpu or auto")
    return device


def device_name(device: torch.device) -> str:
    """What the device is sold as: the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def thread_count(config: RunConfig, device: torch.device, group: Group) -> int:
    """Clients trained at a time: as many as asked for or as there are cores for this process; one on a GPU."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.threads or max(1, cores // group.local_size), -(-config.cohort_size // group.size))
