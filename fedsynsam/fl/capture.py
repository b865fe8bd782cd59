"""A local round as a CUDA graph: recorded once for each set of shapes, replayed with the tensors of the next rounds.

Launching the thousands of small kernels of a round costs more than running them; a graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from fedsynsam.fl.client import LocalRound

Outputs = tuple[Tensor, ...]
Function = Callable[[LocalRound, Tensor], Outputs]
WARM_UP = 2  # runs before recording, in which libraries choose their kernels and allocate


class Recording(NamedTuple):
    """What was recorded: `replay` reads `inputs`, and whatever other tensors `call` owns, which live as long."""

    inputs: list[Tensor]
    replay: Callable[[], Outputs]
    call: Callable[[], Outputs]


class Recorder:
    """Runs a function of a `LocalRound` and the weights [P] that it starts from by recordings, one a set of shapes.

    `record(call)` makes a callable that repeats `call` on the tensors that it reads; the default is a CUDA graph.
    """

    def __init__(self, record: Callable[[Callable[[], Outputs]], Callable[[], Outputs]] | None = None) -> None:
        self._record = record or record_graph
        self._recordings: dict[tuple[object, ...], Recording] = {}

    def run(self, function: Function, work: LocalRound, start: Tensor) -> Outputs:
        """`function(work, start)`; only the tensors of `work` and `start` may differ between calls of equal shapes."""
        # a thread's current device is the first one, whichever the tensors are on
        with torch.cuda.device(start.device) if start.is_cuda else nullcontext():
            return self._run(function, work, start)

    def _run(self, function: Function, work: LocalRound, start: Tensor) -> Outputs:
        tensors = [start, *work.tensors()]
        key = (type(work.perturbation), *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key not in self._recordings:
            own, weights = work.copy(), start.clone()

            def call() -> Outputs:
                return function(own, weights)

            self._recordings[key] = Recording([weights, *own.tensors()], self._record(call), call)
        recording = self._recordings[key]
        for target, source in zip(recording.inputs, tensors, strict=True):
            target.copy_(source, non_blocking=True)
        return tuple(output.clone() for output in recording.replay())


def record_graph(call: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """`call` as a CUDA graph on the current device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):  # its default is a stream of the device that recorded first
        outputs = call()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
