"""One client's round: local steps from the global weights, then a compressed update as real bytes."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsynsam.compress import Compressor, State
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.cosines import Probe
from fedsynsam.fl.data import Dataset, take
from fedsynsam.fl.flat import Batch, FlatModel
from fedsynsam.fl.perturbation import Perturbation
from fedsynsam.ops import sam_perturb, sam_step
from fedsynsam.wire import Payload

Item = TypeVar("Item")
Result = TypeVar("Result")


class Worker:
    """The buffers in which one client at a time is trained: weights w, perturbed weights w', momentum."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.model = FlatModel(module, device)
        self.ahead = FlatModel(module, device)
        self.velocity = torch.zeros_like(self.model.weights)


class WorkerPool:
    """Threads that each own a `Worker`; results come in the order of the items, whatever the number of threads."""

    def __init__(self, module: nn.Module, device: torch.device, threads: int) -> None:
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(Worker(module, device))
        # PyTorch counts its threads per thread: each of ours computes alone, so that results do not depend on them
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def map(self, function: Callable[[Worker, Item], Result], items: list[Item]) -> list[Result]:
        """`[function(worker, item) for item in items]`, several at a time."""

        def call(item: Item) -> Result:
            worker = self._idle.get()
            try:
                return function(worker, item)
            finally:
                self._idle.put(worker)

        return list(self._pool.map(call, items))

    def close(self) -> None:
        """End the threads; work not yet begun is dropped."""
        self._pool.shutdown(cancel_futures=True)


def batches(dataset: Dataset, members: np.ndarray, config: RunConfig, rng: np.random.Generator) -> list[Batch]:
    """The `local_steps` batches of a client that holds the examples `members`.

    The client goes through its examples in a random order, and through a new one when that is used up. A client with
    fewer examples than `batch_size` uses all of them in every step.
    """
    size = min(config.batch_size, len(members))
    epochs = -(-config.local_steps * size // len(members))
    order = np.concatenate([rng.permutation(members) for _ in range(epochs)])[: config.local_steps * size]
    indices = torch.from_numpy(order).to(dataset.y_train.device)
    images, labels = take(dataset.x_train, indices), dataset.y_train[indices]  # one gather for the whole round
    return list(zip(images.split(size), labels.split(size), strict=True))


def train(
    worker: Worker,
    start: Tensor,
    steps: list[Batch],
    perturbation: Perturbation,
    config: RunConfig,
    probe: Probe | None = None,
) -> tuple[Tensor, float]:
    """Train from the global weights `start` [P]; return the update w_K − w_0 [P] and the mean loss of the steps.

    w ← w − lr · ∇f(w + ε), with ε = rho · d / ‖d‖ from `perturbation`, or ε = 0 where it gives no direction.
    `probe` measures on the way, and changes nothing.
    """
    model, ahead, momentum = worker.model, worker.ahead, config.momentum
    model.weights.copy_(start.view(1, -1))
    worker.velocity.zero_()
    losses = []
    for number, batch in enumerate(steps, start=1):
        if probe is not None:
            probe(model, batch, number == len(steps))
        direction = perturbation.direction(model, batch)
        if direction is None:
            losses.append(model.backward(batch))
            gradient = model.gradient
        else:
            sam_perturb(
                model.weights,
                direction.gradient,
                rho=config.rho or 0.0,
                synthetic=direction.synthetic,
                beta=direction.beta,
                out=ahead.weights,
            )
            losses.append(ahead.backward(batch))
            gradient = ahead.gradient
        sam_step(
            model.weights,
            gradient,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=momentum,
            momentum_buffer=worker.velocity if momentum else None,
        )
    return model.weights[0] - start, float(torch.stack(losses).mean())


@dataclass(frozen=True)
class Upload:
    """What reaches the server from one client, and what stays with the client (`state`)."""

    client_id: int
    payload: Payload
    wire_bytes: int
    state: State
    loss: float
    num_examples: int
    cosines: dict[str, float]


def send(
    compressor: Compressor, update: Tensor, state: State, *, seed: int, encode: bool
) -> tuple[Payload, State, int]:
    """Compress `update` and carry it over the wire: the payload as the server has it, the new state, its bytes.

    Without `encode` the payload is handed over as it is, and its length is what encoding it would give.
    """
    payload, new_state = compressor.compress(update, state, seed=seed)
    if not encode:
        return payload, new_state, payload.wire_bytes
    blob = payload.encode()
    return Payload.decode(blob, like=update), new_state, len(blob)
