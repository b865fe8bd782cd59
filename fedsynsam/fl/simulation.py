"""A whole federated run on one machine: `Simulation(config, out).run()`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fedsynsam.compress import compressor as build_compressor
from fedsynsam.errors import ArgumentError, ConfigError, NonFiniteError
from fedsynsam.fl.algorithm import PRESETS, perturbation_for, real_set, resolve
from fedsynsam.fl.checkpoint import load_checkpoint, save_checkpoint
from fedsynsam.fl.client import Upload, Worker, WorkerPool, batches, send, train
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.cosines import Probe, held_out_sample, mean_cosines
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.evaluation import evaluate, summarise
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.metrics import OnRound, OnStep, RoundMetrics, RunResult
from fedsynsam.fl.models import build_model
from fedsynsam.fl.partition import partition
from fedsynsam.fl.runfolder import RunFolder
from fedsynsam.fl.server import Server
from fedsynsam.fl.sharpness import Sharpness
from fedsynsam.fl.streams import BATCHES, COMPRESSION, PARTITION, WEIGHTS, number, stream
from fedsynsam.fl.synthesis import learn

SHARPNESS_EVERY = 5  # evaluations: a measurement costs as much as several rounds


class Simulation:
    """One federated run, written to the folder `out` (None writes nothing).

    The folder gets `config.json` (resolved, with versions and commit), `metrics.jsonl` (one line a round),
    `summary.json` and `checkpoint/`. A folder that holds another run raises `ConfigError`; `resume=True` goes on
    from its checkpoint, whose configuration must be the same.
    """

    def __init__(self, config: RunConfig, out: Path | None = None, *, resume: bool = False) -> None:
        self.config, self.out = resolve(config), None if out is None else Path(out)
        if resume and out is None:
            raise ConfigError("resume: needs the folder of the run; give --out")
        self._resume = resume
        try:
            self._compressor = build_compressor(config.compressor)
        except ArgumentError as error:
            raise ConfigError(f"compressor: {error}") from error
        self._device = choose_device(config.device)
        self._rounds: list[RoundMetrics] = []

    def run(self, on_round: OnRound | None = None, on_step: OnStep | None = None) -> RunResult:
        """Run all rounds; `on_round` sees each round's metrics, `on_step` the progress within long work.

        On a CPU the result is the same, byte for byte, for every number of threads. Raises `ConfigError` and
        `DataError` before the first round, `NonFiniteError` when a client diverges.
        """
        with one_thread_each():
            self._set_up()
            folder = None
            try:
                if self.out is not None:
                    folder = RunFolder(self.out, self.config, resume=self._resume)
                    self._restore(folder)
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
        module = build_model(config.model, dataset.image_shape, dataset.classes, number(config.seed, WEIGHTS))
        self._module = module.to(self._device)
        self._real_set = real_set(self._dataset, config.synthetic_images, config.seed)
        self._held_out = held_out_sample(self._dataset, config.seed)
        self._sharpness = Sharpness(self._module, self._dataset, config.seed)
        shared = self._real_set if PRESETS[config.algorithm].perturbation == "real" else None
        self._server = Server(config, flat_weights(self._module), shared)
        self._pool = WorkerPool(self._module, self._device, thread_count(config, self._device))

    def _restore(self, folder: RunFolder) -> None:
        state = load_checkpoint(folder.checkpoint, self._server.state, self._compressor)
        if state is not None:
            self._server.state = state
        # rounds after the last checkpoint are run again, to the same numbers
        self._rounds = folder.metrics()[: self._server.state.round]
        folder.keep_rounds(self._rounds)

    def _loop(self, folder: RunFolder | None, on_round: OnRound | None, on_step: OnStep | None) -> None:
        config, server = self.config, self._server
        while server.state.round < config.rounds:
            metrics = self._round(on_step)
            self._rounds.append(metrics)
            if folder is not None:
                folder.append(metrics)
                every, last = config.checkpoint_every, metrics.round == config.rounds
                if every and (last or metrics.round % every == 0):
                    save_checkpoint(folder.checkpoint, server.state)
            if on_round is not None:
                on_round(metrics)

    def _round(self, on_step: OnStep | None) -> RoundMetrics:
        started = time.perf_counter()
        server, config = self._server, self.config
        state = server.state
        if server.needs_synthesis() and state.evidence is not None:
            server.adopt(
                learn(config, self._module, self._dataset, state.evidence, state.synthetic, state.round, on_step)
            )
        current = state.round + 1
        cohort = server.cohort(current)
        downlink = server.downlink_bytes(cohort)
        uploads = self._pool.map(self._client, cohort)
        server.finish_round(uploads)
        accuracy = loss = sharpness = None
        if self._evaluates(current):
            accuracy, loss = evaluate(self._pool, state.weights, self._dataset)
            if config.sharpness and (current % (SHARPNESS_EVERY * config.eval_every) == 0 or current == config.rounds):
                sharpness = self._sharpness.largest(state.weights)[0]
        cosines = mean_cosines([up.cosines for up in uploads])
        return RoundMetrics(
            round=current,
            train_loss=float(np.average([up.loss for up in uploads], weights=[up.num_examples for up in uploads])),
            uplink_bytes=sum(up.wire_bytes for up in uploads),
            downlink_bytes=downlink,
            seconds=round(time.perf_counter() - started, 4),
            test_accuracy=accuracy,
            test_loss=loss,
            cosines=cosines or None,
            sharpness=sharpness,
        )

    def _evaluates(self, round_number: int) -> bool:
        return round_number % self.config.eval_every == 0 or round_number == self.config.rounds

    def _client(self, worker: Worker, client_id: int) -> Upload:
        config, state = self.config, self._server.state
        current, members = state.round + 1, self._parts[client_id]
        steps = batches(self._dataset, members, config, stream(config.seed, BATCHES, current, client_id))
        perturbation = perturbation_for(config, self._server.knowledge(client_id), self._dataset, current, client_id)
        probe = self._probe() if config.cosines and self._evaluates(current) else None
        update, loss = train(worker, state.weights, steps, perturbation, config, probe)
        before = state.residuals.get(client_id) or self._compressor.init(update)
        seed = number(config.seed, COMPRESSION, current, client_id)
        try:
            payload, after, wire_bytes = send(self._compressor, update, before, seed=seed, encode=config.encode)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"client {client_id} diverged in round {current} ({error}); use a smaller lr or rho"
            ) from error
        cosines = probe.result if probe is not None else {}
        return Upload(client_id, payload, wire_bytes, after, loss, len(members), cosines)

    def _probe(self) -> Probe:
        state = self._server.state
        sets = {"real": self._real_set}
        if state.synthetic is not None:
            sets["synthetic"] = state.synthetic.batch
        return Probe(self._held_out, state.weights, state.previous, sets)


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
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device: {name!r} is not there (PyTorch sees {count} CUDA devices); use cpu or auto")
    return device


def thread_count(config: RunConfig, device: torch.device) -> int:
    """Clients trained at a time: as many as asked for or as there are cores; one on a GPU."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.threads or cores, config.cohort_size)
