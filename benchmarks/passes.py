"""How fast the bare passes of a round can be: `python -m benchmarks.passes --out FILE.csv`.

One forward and backward pass of the small CNN on 32 images, nothing else, in several ways: as the simulator does it, by
this library's own kernels; by PyTorch with memory in the order channels last, channels first, and compiled by
`torch.compile`; each by one thread, by two threads of a process, and by two processes. The ways take turns, so that a
load on the machine falls on all; `passes_per_second` is the median over the turns of what all workers did together,
`times` the same in multiples of PyTorch's with channels last by the same workers, `gflop_per_second` the arithmetic of
the passes' convolutions and matrix products (as `torch.utils.flop_counter` counts it). The last way compares: a
large matrix product of PyTorch's, and as many passes as it has the arithmetic of. Two more processes are told by
ONEDNN_MAX_CPU_ISA to leave AVX-512 alone, whose blocks of 16 channels the model does not fill (no change where there is
no AVX-512).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import workload
from benchmarks.peers.job import new_model
from benchmarks.provenance import provenance
from benchmarks.rows import write_rows
from fedsynsam.fl.flat import FlatModel

WARMUP = 5
COUNT = 10  # passes between two looks at the clock
LOCAL = threading.local()
COMPILING = threading.Lock()


class Barrier(Protocol):
    """That of `threading` or of `multiprocessing`."""

    def wait(self) -> object: ...


class Passes:
    """The passes of one worker in one way."""

    def __init__(self, way: str) -> None:
        self.model = FlatModel(new_model(), torch.device("cpu"))
        order = torch.contiguous_format if way == "channels first" else torch.channels_last
        images = workload.data().x_train[: workload.BATCH_SIZE]
        # a copy even if one channel makes PyTorch think that both orders are the same
        self.images = torch.empty(images.shape, memory_format=order).copy_(images)
        self._labels = workload.data().y_train[: workload.BATCH_SIZE]
        self._loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self._forward
        if way == "torch.compile":
            self._loss = torch.compile(self._forward)
        self._own = way == OWN
        with COMPILING:
            self.run(WARMUP)

    def run(self, count: int = COUNT) -> None:
        """Make `count` passes."""
        for _ in range(count):
            if self._own:
                self.model.backward((self.images, self._labels))
                continue
            self.model.gradient.zero_()
            self._loss(self.images, self._labels).backward()

    def _forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.model.module(images), labels)


class Product:
    """A matrix product of the library, large enough for it to be as fast as it can."""

    SIDE = 1024

    def __init__(self) -> None:
        self._factors = torch.randn(2, self.SIDE, self.SIDE)
        self._product = torch.empty(self.SIDE, self.SIDE)

    def run(self) -> None:
        """Compute it once."""
        torch.mm(self._factors[0], self._factors[1], out=self._product)


OWN, UNIT, NARROW = "fedsynsam", "channels last", "channels last, AVX2"
WAYS = (OWN, UNIT, "channels first", "torch.compile", NARROW, "a matrix product")


def arithmetic(work: Passes | Product) -> int:
    """Floating-point operations of one `run()`: two for each multiplication that is added up."""
    with FlopCounterMode(display=False) as counter:
        work.run()
    return int(counter.get_total_flops())


def start(barrier: Barrier) -> None:
    """Prepare a worker: one thread for its arithmetic, and the barrier at which all begin."""
    torch.set_num_threads(1)
    LOCAL.barrier, LOCAL.work = barrier, {}


def start_narrow(barrier: Barrier) -> None:
    """The same for a process whose convolutions use AVX2; its library reads this once, before the first of them."""
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    start(barrier)


def rate(way: str, seconds: float) -> float:
    """Times that this worker runs one way in a second, over `seconds`, which begin when all workers are ready."""
    if way not in LOCAL.work:
        LOCAL.work[way] = Product() if way == WAYS[-1] else Passes(way)
    LOCAL.barrier.wait()
    count, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        LOCAL.work[way].run()
        count += 1
    return count / taken


@contextmanager
def workers(kind: str) -> Iterator[tuple[dict[str, Executor], int]]:
    """The workers of `kind`, one of `KINDS`, for each way that they know, and how many they are."""
    count = 1 if kind == "one thread" else 2
    if kind == "two processes":
        context = multiprocessing.get_context("spawn")
        usual, narrow = (
            ProcessPoolExecutor(count, context, prepare, (context.Barrier(count),)) for prepare in (start, start_narrow)
        )
        with usual, narrow:
            yield {way: narrow if way == NARROW else usual for way in WAYS}, count
    else:
        with ThreadPoolExecutor(count, initializer=start, initargs=(threading.Barrier(count),)) as pool:
            yield {way: pool for way in WAYS if way != NARROW}, count


KINDS = ("one thread", "two threads", "two processes")


def measure(kind: str, seconds: float, turns: int) -> list[dict[str, Any]]:
    """The rows of one kind of workers."""
    of_passes, of_product = arithmetic(Passes(UNIT)), arithmetic(Product())
    with workers(kind) as (pools, count):
        found: dict[str, list[float]] = {way: [] for way in pools}
        for turn in range(turns + 1):
            for way, pool in pools.items():
                total = sum(pool.map(rate, [way] * count, [seconds] * count))
                if turn:  # the first is for warming up
                    found[way].append(total * (of_product if way == WAYS[-1] else of_passes))
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    return [
        {
            "workers": kind,
            "way": way,
            "turns": turns,
            "passes_per_second": f"{COUNT * median / of_passes:.1f}",
            "times": f"{median / medians[UNIT]:.3f}",
            "gflop_per_second": f"{median / 1e9:.1f}",
        }
        for way, median in medians.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every way with every kind of workers and write the CSV."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.passes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn, default 1")
    parser.add_argument("--turns", type=int, default=9, help="turns of each way, default 9")
    options = parser.parse_args(arguments)
    rows = []
    for kind in KINDS:
        of_kind = measure(kind, options.seconds, options.turns)
        rows += of_kind
        for row in of_kind:
            print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    where = provenance(torch.device("cpu"))
    write_rows([{**row, **where} for row in rows], [*rows[0], *where], options.out)


if __name__ == "__main__":
    main()
