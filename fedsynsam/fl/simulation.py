"""A whole federated run: `Simulation(config, out).run()`, in one process or in several that share it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from fedsynsam.compress import compressor as build_compressor
from fedsynsam.errors import ArgumentError, CheckpointError, ConfigError, NonFiniteError
from fedsynsam.fl.algorithm import PRESETS, perturbation_for, real_set, resolve
from fedsynsam.fl.checkpoint import Checkpoint
from fedsynsam.fl.client import Upload, Worker, WorkerPool, batches, send, train
from fedsynsam.fl.config import RunConfig, config_json
from fedsynsam.fl.cosines import Probe, held_out_sample, mean_cosines
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.distributed import Group, local_rank
from fedsynsam.fl.evaluation import evaluate, summarise
from fedsynsam.fl.exchange import exchange
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.interrupts import Interrupted, Interrupts
from fedsynsam.fl.metrics import OnRound, OnStep, RoundMetrics, RunResult, StepProgress
from fedsynsam.fl.models import build_model
from fedsynsam.fl.partition import partition
from fedsynsam.fl.residuals import Residuals, ResidualStore, choose_place, residual_note
from fedsynsam.fl.runfolder import RunFolder, differing_key
from fedsynsam.fl.server import Server
from fedsynsam.fl.sharpness import Sharpness
from fedsynsam.fl.streams import BATCHES, COMPRESSION, PARTITION, WEIGHTS, number, stream
from fedsynsam.fl.synthesis import learn
from fedsynsam.fl.synthetic import FILE_NAME, SyntheticSet, load_synthetic, save_synthetic
from fedsynsam.fl.tensorfile import TensorFolder, pack, unpack

SHARPNESS_EVERY = 5  # evaluations: a measurement costs as much as several rounds


class Simulation:
    """One federated run, written to the folder `out` (None writes nothing).

    The folder gets `config.json` (resolved, with versions and commit), `metrics.jsonl` (one line a round),
    `summary.json`, `checkpoint/`, and `synthetic.safetensors` when a synthetic set is learned. A folder that holds
    another run raises `ConfigError`; `resume=True` goes on from its checkpoint, whose
    configuration must be the same. Of the processes of a `group` only rank 0 writes it.
    """

    def __init__(
        self, config: RunConfig, out: Path | None = None, *, resume: bool = False, group: Group | None = None
    ) -> None:
        self.config, self.out = resolve(config), None if out is None else Path(out)
        self._group, self._interrupts = group or Group(), Interrupts()
        if out is None and config.residual_store == "disk":
            raise ConfigError("residual_store: 'disk' needs the folder of the run; give one, or use host")
        if resume and out is None:
            raise ConfigError("resume: needs the folder of the run; give --out")
        self._resume = resume
        try:
            self._compressor = build_compressor(config.compressor)
        except ArgumentError as error:
            raise ConfigError(f"compressor: {error}") from error
        self._device = choose_device(config.device, local_rank() if self._group.size > 1 else None)
        self._rounds: list[RoundMetrics] = []
        self._folder: RunFolder | None = None  # rank 0's alone

    def run(
        self,
        on_round: OnRound | None = None,
        on_step: OnStep | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> RunResult:
        """Run all rounds; `on_round` sees each round's metrics, `on_step` the progress within long work.

        `on_note` is told, before the first round, what the clients' residuals will take. Of several processes all call
        this, and rank 0 alone calls back. On a CPU the result is the same, byte for byte, for every number of threads
        and processes.

        Raises `ConfigError`, `DataError` and `CheckpointError` before the first round, `NonFiniteError` when a client
        diverges, `RankError` when another process is lost. SIGINT and SIGTERM end the run with `Interrupted` once a
        checkpoint of the last finished round is written.
        """
        with one_thread_each(), self._interrupts.watched(patient=self._group.size > 1):
            self._set_up()
            try:
                self._open()
                if on_note is not None and self._group.rank == 0 and not self._residuals.empty:
                    on_note(residual_note(self.config, self._server.state.weights.numel(), self._residuals.store.place))
                self._loop(on_round, on_step)
            finally:
                self._pool.close()
                self._remove_scratch()
        summary = summarise(self.config, self._rounds, self._server.state.weights.numel())
        if self._folder is not None:
            self._folder.write_summary(summary)
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
        given = None if config.synthetic is None else load_synthetic(Path(config.synthetic), self._dataset)
        self._server = Server(config, flat_weights(self._module), shared, given)
        self._pool = WorkerPool(self._module, self._device, thread_count(config, self._device, self._group))

    def _open(self) -> None:
        """Make or open the run's folder on rank 0; go on from its checkpoint on every rank."""
        group, server = self._group, self._server
        first, *others = (json.loads(text) for text in group.all_gather(config_json(self.config).encode()))
        for rank, other in enumerate(others, start=1):
            if key := differing_key(first, other):
                raise ConfigError(f"{key}: rank 0 was given {first[key]!r}, rank {rank} {other[key]!r}")

        def open_folder() -> bytes:
            if self.out is not None:
                self._folder = RunFolder(self.out, self.config, resume=self._resume)
            return b""

        group.on_first(open_folder)
        files = None if self._folder is None else TensorFolder(self._folder.checkpoint)
        self._remove_scratch()
        scratch = TensorFolder(self._scratch) if self._scratch is not None else files
        weights = server.state.weights
        place = choose_place(self.config, weights.numel(), self._device, group, self.out is not None)
        self._residuals = Residuals(ResidualStore(place, weights, scratch), self._compressor, weights, group)
        self._checkpoint = Checkpoint(files, group)
        if self.out is None:
            return
        if (state := self._checkpoint.load(server.state, self._residuals)) is not None:
            server.restore(state)
        if self._folder is not None:
            # rounds after the last checkpoint are run again, to the same numbers
            self._rounds = self._folder.metrics()[: server.state.round]
            if len(self._rounds) < server.state.round:
                raise CheckpointError(
                    f"{self.out / 'metrics.jsonl'} is damaged (it holds {len(self._rounds)} rounds, the checkpoint "
                    f"{server.state.round}); start the run anew"
                )
            self._folder.keep_rounds(self._rounds)
            self._write_synthetic()

    @property
    def _scratch(self) -> Path | None:
        """Where a rank other than 0 keeps residuals that shall lie on disk."""
        return None if self.out is None or self._group.rank == 0 else self.out / f"rank-{self._group.rank}"

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        elif self._folder is not None:  # also of ranks that a run with more processes had
            for path in self._folder.path.glob("rank-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _loop(self, on_round: OnRound | None, on_step: OnStep | None) -> None:
        config, server = self.config, self._server
        saved = None
        try:
            while server.state.round < config.rounds:
                self._check_interrupts()
                metrics, stop = self._round(on_step)
                self._rounds.append(metrics)
                if self._folder is not None:
                    self._folder.append(metrics)
                every, last = config.checkpoint_every, metrics.round == config.rounds
                if every and (last or metrics.round % every == 0):
                    self._save()
                    saved = metrics.round
                if on_round is not None and self._group.rank == 0:
                    on_round(metrics)
                if stop is not None and not last:
                    raise Interrupted(stop)
        except Interrupted:
            if config.checkpoint_every and saved != server.state.round:
                self._save()
            raise

    def _save(self) -> None:
        if self._folder is not None:
            self._folder.sync_metrics()
        if self.out is not None:
            self._checkpoint.save(self._server.state, self._residuals)

    def _check_interrupts(self) -> None:
        """Give the round up if a signal came; ranks finish it instead, because they stop together."""
        if self._group.size == 1:
            self._interrupts.check()

    def _learn(self, on_step: OnStep | None) -> None:
        """Learn the synthetic set on rank 0, and let every rank adopt it."""
        state = self._server.state
        evidence = state.evidence

        def watch(step: StepProgress) -> None:
            self._check_interrupts()
            if on_step is not None:
                on_step(step)

        def work() -> bytes:
            assert evidence is not None
            began = time.perf_counter()
            synthetic, loss = learn(
                self.config, self._module, self._dataset, evidence, state.synthetic, state.round, watch
            )
            return pack(synthetic.tensors(), {"loss": loss, "seconds": round(time.perf_counter() - began, 4)})

        tensors, numbers = unpack(self._group.on_first(work), "the synthetic set", self._device)
        self._server.adopt(SyntheticSet(**tensors), numbers["loss"], numbers["seconds"])
        self._write_synthetic()

    def _write_synthetic(self) -> None:
        """Put the latest set into the run's folder, for a picture and for other runs."""
        state = self._server.state
        if self._folder is not None and state.synthetic is not None:
            path = self._folder.path / FILE_NAME
            save_synthetic(path, state.synthetic, self._dataset, self.config, state.synthetic_round)

    def _round(self, on_step: OnStep | None) -> tuple[RoundMetrics, int | None]:
        """One round: its metrics, and the signal that asked any rank to stop."""
        started = time.perf_counter()
        server, config = self._server, self.config
        state = server.state
        if server.needs_synthesis():
            self._learn(on_step)
        newly_learned = server.newly_learned()
        current = state.round + 1
        cohort = server.cohort(current)
        downlink = server.downlink_bytes(cohort)
        own = self._residuals.place(cohort)
        uploads, stop = exchange(
            self._group,
            lambda: self._pool.map(self._client, own),
            state.weights,
            self._compressor.spec,
            lambda: self._interrupts.signum,
        )
        server.finish_round(uploads)
        states = {up.client_id: up.state for up in uploads}
        self._residuals.keep(cohort, {client: states[client] for client in own}, current)
        accuracy = loss = sharpness = None
        if self._evaluates(current):
            accuracy, loss = evaluate(self._pool, state.weights, self._dataset, self._group)
            due = current % (SHARPNESS_EVERY * config.eval_every) == 0 or current == config.rounds
            if config.sharpness and due and self._group.rank == 0:
                sharpness = self._sharpness.largest(state.weights)[0]
        cosines = mean_cosines([up.cosines for up in uploads])
        metrics = RoundMetrics(
            round=current,
            train_loss=float(np.average([up.loss for up in uploads], weights=[up.num_examples for up in uploads])),
            uplink_bytes=sum(up.wire_bytes for up in uploads),
            downlink_bytes=downlink,
            seconds=round(time.perf_counter() - started, 4),
            test_accuracy=accuracy,
            test_loss=loss,
            cosines=cosines or None,
            sharpness=sharpness,
            synthetic_loss=state.synthetic_loss if newly_learned else None,
            synthetic_seconds=state.synthetic_seconds if newly_learned else None,
        )
        return metrics, stop

    def _evaluates(self, round_number: int) -> bool:
        return round_number % self.config.eval_every == 0 or round_number == self.config.rounds

    def _client(self, worker: Worker, client_id: int) -> Upload:
        self._check_interrupts()
        config, state = self.config, self._server.state
        current, members = state.round + 1, self._parts[client_id]
        steps = batches(self._dataset, members, config, stream(config.seed, BATCHES, current, client_id))
        perturbation = perturbation_for(config, self._server.knowledge(client_id), self._dataset, current, client_id)
        probe = self._probe() if config.cosines and self._evaluates(current) else None
        update, loss = train(worker, state.weights, steps, perturbation, config, probe)
        before = self._residuals.get(client_id)
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


def thread_count(config: RunConfig, device: torch.device, group: Group) -> int:
    """Clients trained at a time: as many as asked for or as there are cores for this process; one on a GPU."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.threads or max(1, cores // group.local_size), -(-config.cohort_size // group.size))
