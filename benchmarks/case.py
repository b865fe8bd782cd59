"""What a benchmark case is: one operation with its parameters, its floor, its goal, and its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Built:
    """A case on real tensors. The outputs exist already, so that allocation is not part of the time."""

    run: Callable[[], Sequence[Tensor]]  # the operation; returns its outputs, for the check and the memory column
    allocating: Callable[[], object] | None = None  # the same without out=, as most callers write it
    eager: Callable[[], object] | None = None  # the PyTorch pipeline of the same job; also run under torch.compile
    libraries: dict[str, Callable[[], object]] = field(default_factory=dict)  # parts of the job in other libraries
    state: list[Tensor] = field(default_factory=list)  # what an operation in place changes, for the check


@dataclass(frozen=True)
class Case:
    """One line of the benchmark.

    floor(rows, n): the bytes that any implementation has to move.
    build(rows, n, device): deterministic; two calls give equal inputs.
    """

    op: str
    label: str
    floor: Callable[[int, int], float]
    build: Callable[[int, int, torch.device], Built]
    density: float | None = None
    bits: int | None = None
    goal: str | None = None  # a key of benchmarks.goals.GOALS, without the device
    kernel: str = ""  # what backends know the operation as, if not by `op`
    coding_of: str | None = None  # label of the top-k case whose time bounds this one
    compiled: bool = False  # time the eager pipeline under torch.compile too (costs half a minute)
    rtol: float = 0.0  # of the check against the reference backend; 0: the same bits


def normal(rows: int, n: int, device: torch.device, seed: int = 0) -> Tensor:
    """Return a float32 [rows, n] of standard normal values, the same for the same seed."""
    return torch.randn(rows, n, device=device, generator=torch.Generator(device).manual_seed(seed))


def like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return new zeroed tensors, so that their memory is touched before anything is timed."""
    return [torch.zeros_like(tensor) for tensor in tensors]
