"""A whole federated run on one machine: `Simulation(config, out).run()`."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fedsynsam as fs
from fedsynsam.errors import ArgumentError, ConfigError
from fedsynsam.fl.algorithm import PRESETS, perturbation_for, real_set, resolve
from fedsynsam.fl.client import Upload, Worker, WorkerPool, batches, train, upload
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.metrics import OnRound, OnStep, RoundMetrics, RunResult
from fedsynsam.fl.models import build_model
from fedsynsam.fl.partition import partition
from fedsynsam.fl.runfolder import RunFolder
from fedsynsam.fl.server import Server
from fedsynsam.fl.streams import BATCHES, COMPRESSION, PARTITION, WEIGHTS, number, stream
from fedsynsam.fl.synthesis import learn

EVALUATION_BATCH = 500


class Simulation:
    """One federated run, written to the folder `out` (None writes nothing).

    The folder gets `config.json` (resolved, with versions and commit), `metrics.jsonl` (one line a round),
    `summary.json` and `checkpoint/`. A folder that holds another run raises `ConfigError`; `resume=True` goes on
    from its checkpoint, whose configuration must be the same.
    """

    def __init__(self, config: RunConfig, out: Path | None = None, *, resume: bool = False) -> None:
        self.config, self.out, self.resume = resolve(config), out, resume
        try:
            self._compressor = fs.compressor(config.compressor)
        except ArgumentError as error:
            raise ConfigError(f"compressor: {error}") from error
        self._device = choose_device(config.device)
        self._rounds: list[RoundMetrics] = []

    def run(self, on_round: OnRound | None = None, on_step: OnStep | None = None) -> RunResult:
        """Run all rounds; `on_round` sees each round's metrics, `on_step` the progress within long work.

        On a CPU the result is the same, byte for byte, for every number of threads.
        """
        folder = None if self.out is None else RunFolder(self.out, self.config, resume=self.resume)
        with one_thread_each():
            self._set_up()
            try:
                self._loop(folder, on_round, on_step)
            finally:
                self._pool.close()
        summary = summarise(self.config, self._rounds, self._server.state.weights.numel())
        if folder is not None:
            folder.write_summary(summary)
        return RunResult(config=self.config, rounds=self._rounds, summary=summary, out=self.out)

    def _set_up(self) -> None:
        config = self.config
        dataset = load_dataset(config.dataset, config.data_dir)
        self._parts = partition(
            config.partition,
            dataset.y_train.numpy(),
            config.clients,
            stream(config.seed, PARTITION),
            alpha=config.alpha,
            shards_per_client=config.shards_per_client,
        )
        self._dataset = dataset.to(self._device)
        self._module = build_model(config.model, dataset.image_shape, dataset.classes, number(config.seed, WEIGHTS)).to(
            self._device
        )
        self._pool = WorkerPool(self._module, self._device, thread_count(config, self._device))
        shared = None
        if PRESETS[config.algorithm].perturbation == "real":
            shared = real_set(self._dataset, config.synthetic_images, config.seed)
        self._server = Server(config, flat_weights(self._module).to(self._device), shared)

    def _loop(self, folder: RunFolder | None, on_round: OnRound | None, on_step: OnStep | None) -> None:
        while self._server.state.round < self.config.rounds:
            metrics = self._round(on_step)
            self._rounds.append(metrics)
            if folder is not None:
                folder.append(metrics)
            if on_round is not None:
                on_round(metrics)

    def _round(self, on_step: OnStep | None) -> RoundMetrics:
        started = time.perf_counter()
        server, config = self._server, self.config
        number_ = server.state.round + 1
        if server.needs_synthesis():
            state = server.state
            server.adopt(
                learn(config, self._module, self._dataset, state.evidence, state.synthetic, state.round, on_step)
            )
        cohort = server.cohort(number_)
        downlink = server.downlink_bytes(cohort)
        uploads = self._pool.map(self._client, cohort)
        server.finish_round(uploads)
        accuracy = loss = None
        if number_ % config.eval_every == 0 or number_ == config.rounds:
            accuracy, loss = self._evaluate(server.state.weights)
        examples = [up.num_examples for up in uploads]
        return RoundMetrics(
            round=number_,
            train_loss=float(np.average([up.loss for up in uploads], weights=examples)),
            uplink_bytes=sum(up.wire_bytes for up in uploads),
            downlink_bytes=downlink,
            seconds=round(time.perf_counter() - started, 4),
            test_accuracy=accuracy,
            test_loss=loss,
        )

    def _client(self, worker: Worker, client_id: int) -> Upload:
        config, state = self.config, self._server.state
        round_number, members = state.round + 1, self._parts[client_id]
        steps = batches(self._dataset, members, config, stream(config.seed, BATCHES, round_number, client_id))
        knowledge = self._server.knowledge(client_id)
        perturbation = perturbation_for(config, knowledge, self._dataset, round_number, client_id)
        update, loss = train(worker, state.weights, steps, perturbation, config)
        seed = number(config.seed, COMPRESSION, round_number, client_id)
        before = state.residuals.get(client_id)
        if before is None:
            before = self._compressor.init(update)
        payload, after, wire_bytes = upload(
            self._compressor, update, before, seed=seed, encode=config.encode, client_id=client_id
        )
        return Upload(client_id, payload, wire_bytes, after, loss, len(members))

    def _evaluate(self, weights: Tensor) -> tuple[float, float]:
        """Accuracy and mean cross-entropy on the test set."""
        data = self._dataset
        chunks = list(zip(data.x_test.split(EVALUATION_BATCH), data.y_test.split(EVALUATION_BATCH), strict=True))

        def evaluate(worker: Worker, chunk: tuple[Tensor, Tensor]) -> tuple[int, float]:
            worker.model.weights.copy_(weights.view(1, -1))
            return worker.model.count_and_loss(chunk)

        results = self._pool.map(evaluate, chunks)
        count = len(data.y_test)
        return sum(right for right, _ in results) / count, sum(loss for _, loss in results) / count


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, PyTorch's operators use one thread: a client is a thread, and results cannot depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one. Raises `ConfigError` when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(
            f"device: {name!r} is not there (PyTorch sees {torch.cuda.device_count()} CUDA devices); use cpu"
        )
    return device


def thread_count(config: RunConfig, device: torch.device) -> int:
    """Clients trained at a time: as many as asked for or as there are cores; one on a GPU."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.threads or cores, config.cohort_size)


def summarise(config: RunConfig, rounds: list[RoundMetrics], parameters: int) -> dict[str, Any]:
    """The contents of `summary.json`; see `RunResult`."""
    evaluated = [(row.round, row.test_accuracy) for row in rounds if row.test_accuracy is not None]
    last_fifth = config.rounds - math.ceil(config.rounds / 5)
    late = [accuracy for number_, accuracy in evaluated if number_ >= last_fifth]
    uplink = sum(row.uplink_bytes for row in rounds)
    dense = 4 * parameters * config.cohort_size * len(rounds)
    return {
        "algorithm": config.algorithm,
        "compressor": config.compressor,
        "seed": config.seed,
        "rounds": len(rounds),
        "final_accuracy": float(np.mean(late)),
        "last_accuracy": evaluated[-1][1],
        "best_accuracy": max(accuracy for _, accuracy in evaluated),
        "uplink_bytes": uplink,
        "downlink_bytes": sum(row.downlink_bytes for row in rounds),
        "dense_uplink_bytes": dense,
        "uplink_ratio": dense / uplink,
        "parameters": parameters,
        "seconds": round(sum(row.seconds for row in rounds), 3),
        "sharpness": next((row.sharpness for row in reversed(rounds) if row.sharpness is not None), None),
    }
