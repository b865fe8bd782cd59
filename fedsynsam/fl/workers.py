"""Who computes: threads that each own the buffers of a group of clients."""

from __future__ import annotations

import contextvars
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedsynsam.fl.batched import BatchedModel
from fedsynsam.fl.capture import Recorder
from fedsynsam.fl.client import LocalRound, Rows, train
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.cosines import Probe
from fedsynsam.fl.flat import FlatModel, RowModel

Item = TypeVar("Item")
Result = TypeVar("Result")


class Worker:
    """Trains groups of clients with one engine, and evaluates models; buffers are made once a size of group.

    With `capture` (on CUDA) the local round of a group is recorded as a graph when its shapes are first met, and
    replayed from then on.
    """

    def __init__(self, module: nn.Module, device: torch.device, engine: str = "sequential", *, capture: bool = False):
        self._module, self._device, self._engine = module, device, engine
        self._rows: dict[int, Rows] = {}
        self._recorder = Recorder() if capture else None
        self.single = FlatModel(module, device)  # for one model at a time

    def rows(self, count: int) -> Rows:
        """The buffers of a group of `count` clients."""
        if count not in self._rows:
            model = self.single if self._engine == "sequential" else self._new_model(count)
            # the gradient at w is used up when that at w' is computed: one buffer serves both
            ahead = self._new_model(count, model.gradient)
            self._rows[count] = Rows(model, ahead, torch.zeros_like(ahead.weights))
        return self._rows[count]

    def train(
        self, start: Tensor, work: LocalRound, config: RunConfig, probes: Sequence[Probe] = ()
    ) -> tuple[Tensor, ...]:
        """`client.train` in this worker's buffers."""
        rows = self.rows(len(work.steps.sizes))
        if self._recorder is None or probes:
            return train(rows, start, work, config, probes)
        return self._recorder.run(lambda own, weights: train(rows, weights, own, config), work, start)

    def _new_model(self, count: int, gradient: Tensor | None = None) -> RowModel:
        if self._engine == "sequential":
            return FlatModel(self._module, self._device, gradient)
        unfold = self._engine == "unfold"
        return BatchedModel(self._module, self._device, count, unfold=unfold, gradient=gradient)


class WorkerPool:
    """Threads that each own a `Worker`; results come in the order of the items, whatever the number of threads.

    The caller's context variables hold in them, too: what `use_backend` says, for one.
    """

    def __init__(self, new_worker: Callable[[], Worker], threads: int) -> None:
        self.threads = threads
        self.idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(threads):
            self.idle.put(new_worker())
        # PyTorch counts its threads per thread: each of ours computes alone, so that results do not depend on them
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def map(self, function: Callable[[Worker, Item], Result], items: list[Item]) -> list[Result]:
        """`[function(worker, item) for item in items]`, several at a time."""

        def call(item: Item) -> Result:
            worker = self.idle.get()
            try:
                return function(worker, item)
            finally:
                self.idle.put(worker)

        contexts = [contextvars.copy_context() for _ in items]  # one each: no two threads may be in the same
        return list(self._pool.map(lambda context, item: context.run(call, item), contexts, items))

    def close(self) -> None:
        """End the threads; work not yet begun is dropped."""
        self._pool.shutdown(cancel_futures=True)
