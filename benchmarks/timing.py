"""Clocks, the memory copy that everything is compared with, and the memory that a call takes."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

MINIMUM = 5  # repetitions, however slow a call is
MAXIMUM = 1000


class Times(NamedTuple):
    """Percentiles of the durations of one function, in seconds."""

    median: float
    p20: float
    p80: float
    repetitions: int


def measure(
    functions: Sequence[Callable[[], object]], seconds: float, device: torch.device, minimum: int = MINIMUM
) -> list[Times]:
    """Time several functions in turn, one call each, until each has had `seconds` and `minimum` calls.

    Taking turns lets slow drift of the machine (clock speed, other users) hit all of them alike. On a GPU, each call
    starts with a cold L2 cache.
    """
    durations: list[list[float]] = [[] for _ in functions]
    sweep = Sweep(device) if device.type == "cuda" else None
    for function in functions:
        _one(function, sweep)  # warm-up: page faults, thread pools, code caches
    while len(durations[0]) < MAXIMUM:
        if len(durations[0]) >= minimum and all(sum(taken) >= seconds for taken in durations):
            break
        for function, taken in zip(functions, durations, strict=True):
            taken.append(_one(function, sweep))
    return [_percentiles(taken) for taken in durations]


class Sweep:
    """Reads a buffer far larger than any L2 cache, so that the call after it finds none of its data there.

    Reading leaves no changed lines, whose write-back would be charged to the call. The buffer is so large that the
    host has queued the call before the sweep ends: the two events around it then see no launch latency.
    """

    BYTES = 1 << 30

    def __init__(self, device: torch.device) -> None:
        free, _ = torch.cuda.mem_get_info(device)
        self.buffer = torch.ones(max(1, min(self.BYTES, free // 8) // 4), dtype=torch.float32, device=device)
        self.sum = torch.empty((), dtype=torch.float32, device=device)

    def run(self) -> None:
        """Queue one pass over the buffer."""
        torch.sum(self.buffer, dim=0, out=self.sum)


def _one(function: Callable[[], object], sweep: Sweep | None) -> float:
    if sweep is not None:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        sweep.run()
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _percentiles(taken: list[float]) -> Times:
    if len(taken) < 2:
        return Times(taken[0], taken[0], taken[0], len(taken))
    cuts = statistics.quantiles(taken, n=5, method="inclusive")
    return Times(statistics.median(taken), cuts[0], cuts[3], len(taken))


class Copy:
    """A plain memory copy that reads half of `floor_bytes` and writes the other half, with all of PyTorch's threads.

    It moves the same bytes as the floor of the case beside it, so that caches favour neither. It is PyTorch's own
    `copy_`: a memmove on one slice a thread was within 5 % of it, but brings a second pool of threads, and two pools
    that take turns slow each other down, since OpenMP's threads go on spinning for milliseconds after their work.
    """

    def __init__(self, floor_bytes: float, device: torch.device) -> None:
        self.bytes = max(64, int(floor_bytes) // 128 * 64)  # each way
        self.source = torch.ones(self.bytes // 4, dtype=torch.float32, device=device)
        self.target = torch.zeros_like(self.source)

    def run(self) -> None:
        """Copy once."""
        self.target.copy_(self.source)


class Memory(NamedTuple):
    """Bytes that a call takes beyond its inputs: its outputs, and the peak of what it allocates itself."""

    outputs: int
    scratch: int


def memory(function: Callable[[], Sequence[torch.Tensor]], device: torch.device) -> Memory | None:
    """Return what a call takes; its outputs exist already, so that all it allocates is scratch.

    On Linux the kernel's high-water mark of resident memory is reset before the call; None where that is impossible.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        outputs = function()
        torch.cuda.synchronize(device)
        return Memory(_bytes(outputs), torch.cuda.max_memory_allocated(device) - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the call would reuse freed memory that still counts as resident
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):  # no Linux, or no glibc
        return None
    before = _resident("VmRSS")
    outputs = function()
    return Memory(_bytes(outputs), max(0, _resident("VmHWM") - before))


def _bytes(outputs: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in outputs)


def _resident(field: str) -> int:
    for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not report {field}")
