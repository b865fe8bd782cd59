"""A whole federated run: `Simulation(config, out).run()`, in one process or in several that share it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedsynsam.compress import compressor as build_compressor
from fedsynsam.errors import ArgumentError, CheckpointError, ConfigError, NonFiniteError
from fedsynsam.fl.algorithm import PRESETS, real_set, resolve, unlearned_note
from fedsynsam.fl.central import Central
from fedsynsam.fl.checkpoint import STATE, Checkpoint
from fedsynsam.fl.client import Upload
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.cosines import held_out_sample, mean_cosines
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.distributed import Group, local_rank
from fedsynsam.fl.engine import Choice, captures, choose, groups
from fedsynsam.fl.evaluation import summarise
from fedsynsam.fl.exchange import exchange
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.interrupts import Interrupted, Interrupts
from fedsynsam.fl.labels import LabelMix
from fedsynsam.fl.machine import choose_device, one_thread_each, thread_count
from fedsynsam.fl.memory import vectors_of_clients
from fedsynsam.fl.metrics import OnRound, OnStep, RoundMetrics, RunResult, StepProgress
from fedsynsam.fl.models import build_model
from fedsynsam.fl.partition import partition
from fedsynsam.fl.records import Records, RecordStore, choose_place, record_bytes, record_note
from fedsynsam.fl.runfolder import RunFolder, differing_key, stored_engine, synthetic_checksum
from fedsynsam.fl.server import Server
from fedsynsam.fl.sharpness import Sharpness
from fedsynsam.fl.streams import PARTITION, WEIGHTS, number, stream
from fedsynsam.fl.synthetic import FILE_NAME, StoredSet, load_synthetic, save_stored, save_synthetic
from fedsynsam.fl.tensorfile import TensorFolder
from fedsynsam.fl.training import Training, widest_batch
from fedsynsam.fl.workers import Worker, WorkerPool

CALMER = "clip gradients (clip_norm, 10 is usual), or use a smaller lr, server_lr or rho"


class Simulation:
    """One federated run, written to the folder `out` (None writes nothing).

    The folder gets `config.json` (resolved, with versions and commit), `metrics.jsonl` (one line a round),
    `summary.json`, `checkpoint/`, and `synthetic.safetensors` when a synthetic set is learned. A folder that holds
    another run, or that another process is writing, raises `ConfigError`; `resume=True` goes on from its checkpoint,
    whose configuration and data must be the same. Of the processes of a `group` only rank 0 writes it.
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
            self.config = self.config.replace(compressor=self._compressor.spec)  # one spelling for one compressor
        except ArgumentError as error:
            raise ConfigError(f"compressor: {error}") from error
        self._device = choose_device(config.device, local_rank() if self._group.size > 1 else None)
        self._rounds: list[RoundMetrics] = []
        self._folder: RunFolder | None = None  # rank 0's alone
        self._given: StoredSet | None = None  # the set that the run begins with; None once it goes on
        self.opened = False  # whether the run's folder is this run's

    def run(
        self,
        on_round: OnRound | None = None,
        on_step: OnStep | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> RunResult:
        """Run all rounds; `on_round` sees each round's metrics, `on_step` the progress within long work.

        `on_note` is told, before the first round, which engine trains and what the clients' state will take. Of
        several processes all call this, and rank 0 alone calls back. On a CPU the sequential engine's result is the
        same, byte for byte, for every number of threads and processes.

        Raises `ConfigError`, `DataError` and `CheckpointError` before the first round, `NonFiniteError` when a client
        diverges, `RankError` when another process is lost. SIGINT and SIGTERM end the run with `Interrupted` once a
        checkpoint of the last finished round is written.
        """
        with one_thread_each(), self._interrupts.watched(patient=self._group.size > 1):
            self._set_up()
            try:
                self._open()
                if on_note is not None and self._group.rank == 0:
                    self._tell(on_note)
                self._loop(on_round, on_step)
                summary = summarise(self.config, self._rounds, self._server.state.weights.numel())
                if self._folder is not None:
                    self._folder.write_summary(summary)
            finally:
                self._close()
        return RunResult(config=self.config, rounds=self._rounds, summary=summary, out=self.out)

    def _close(self) -> None:
        self._pool.close()
        if self.opened:
            self._remove_scratch()
        if self._folder is not None:
            if not self.config.checkpoint_every and not _checkpoint_file(self._folder.path).exists():
                shutil.rmtree(self._folder.checkpoint, ignore_errors=True)  # nobody can go on from records alone
            self._folder.close()
            self._folder = None

    def _tell(self, on_note: Callable[[str], None]) -> None:
        if self._resume and self._server.state.round == 0:
            on_note("there is no checkpoint yet: the run begins again with round 1")
        if (note := unlearned_note(self.config)) is not None:
            on_note(note)
        on_note(self._choice.note)
        if not self._records.empty:
            store = self._records.store
            on_note(record_note(self.config, self._server.state.weights.numel(), store.names, store.place))

    def _set_up(self) -> None:
        config, self._rounds, self.opened = self.config, [], False
        dataset = load_dataset(config.dataset, config.data_dir)
        self._crc32 = dataset.crc32()
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
        shared = self._real_set if PRESETS[config.algorithm].perturbation == "real" else None
        self._given = None
        if config.synthetic is not None and not self._has_checkpoint():  # which holds the set
            self._given = load_synthetic(Path(config.synthetic), self._dataset)
        label_mix = LabelMix.of(self._module, dataset.classes)
        given = None if self._given is None else self._given.synthetic
        self._server = Server(config, flat_weights(self._module), shared, given, label_mix)
        threads = thread_count(config, self._device, self._group)
        self._choice = self._choose(threads)
        self.config = config.replace(engine=self._choice.engine)
        capture = captures(config, self._device)
        self._pool = WorkerPool(
            lambda: Worker(self._module, self._device, self._choice.engine, capture=capture), threads
        )
        sharpness = Sharpness(self._module, self._dataset, config.seed, threads=threads)
        self._central = Central(
            self.config, self._module, self._dataset, self._device, self._pool, self._group, sharpness
        )

    def _has_checkpoint(self) -> bool:
        """Whether the run goes on from a checkpoint, as rank 0 finds."""
        resumed = self._resume and self.out is not None and _checkpoint_file(self.out).exists()
        return bool(self._group.on_first(lambda: b"yes" if resumed else b""))

    def _choose(self, threads: int) -> Choice:
        """The engine, chosen on rank 0 for all ranks; a run that is resumed keeps the one that it had."""

        def work() -> bytes:
            config = self.config.replace(batch_size=widest_batch(self.config, self._parts))
            if self._resume and self.out is not None and config.engine in (None, "auto"):
                config = config.replace(engine=stored_engine(self.out) or config.engine)
            choice = choose(config, self._module, self._dataset, self._device, threads)
            return json.dumps(dataclasses.asdict(choice)).encode()

        return Choice(**json.loads(self._group.on_first(work)))

    def _open(self) -> None:
        """Make or open the run's folder on rank 0; go on from its checkpoint on every rank."""
        group, server = self._group, self._server
        mine = json.dumps({**self.config.to_dict(), "dataset_crc32": self._crc32, **synthetic_checksum(self.config)})
        first, *others = (json.loads(text) for text in group.all_gather(mine.encode()))
        for rank, other in enumerate(others, start=1):
            if key := differing_key(first, other):
                raise ConfigError(f"{key}: rank 0 was given {first.get(key)!r}, rank {rank} {other[key]!r}")

        def open_folder() -> bytes:
            if self.out is not None:
                self._folder = RunFolder(self.out, self.config, self._crc32, resume=self._resume)
            return b""

        group.on_first(open_folder)
        self.opened = True
        files = None if self._folder is None else TensorFolder(self._folder.checkpoint)
        self._remove_scratch()
        scratch = TensorFolder(self._scratch) if self._scratch is not None else files
        weights = server.state.weights
        names = vectors_of_clients(self.config, self._compressor.residual)
        need = record_bytes(self.config, weights.numel(), len(names))
        place = choose_place(self.config, need, self._device, group, self.out is not None)
        self._records = Records(RecordStore(place, names, weights, scratch), weights, group)
        self._training = Training(
            self.config,
            self._compressor,
            self._dataset,
            self._parts,
            server,
            self._records,
            self._real_set,
            self._held_out,
        )
        self._checkpoint = Checkpoint(files, group)
        if self.out is None:
            return
        if (state := self._checkpoint.load(server.state, self._records)) is not None:
            server.restore(state)
        group.on_first(lambda: self._restore_rounds(server.state.round))

    def _restore_rounds(self, finished: int) -> bytes:
        """Take up the metrics of the `finished` rounds of the checkpoint, on rank 0."""
        assert self._folder is not None
        if not finished and self._folder.finished:
            raise CheckpointError(f"{self.out} holds a finished run and no checkpoint; there is nothing to go on from")
        # rounds after the last checkpoint are run again, to the same numbers
        self._rounds = self._folder.metrics(finished)
        self._folder.keep_rounds(self._rounds)
        self._write_synthetic()
        return b""

    @property
    def _scratch(self) -> Path | None:
        """Where a rank other than 0 keeps records that shall lie on disk."""
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
            self._checkpoint.save(self._server.state, self._records)

    def _check_interrupts(self) -> None:
        """Give the round up if a signal came; ranks finish it instead, because they stop together."""
        if self._group.size == 1:
            self._interrupts.check()

    def _learn(self, on_step: OnStep | None) -> None:
        """Learn the synthetic set on rank 0, and let every rank adopt it."""

        def watch(step: StepProgress) -> None:
            self._check_interrupts()
            if on_step is not None:
                on_step(step)

        self._server.adopt(*self._central.learn(self._server.state, watch))
        self._write_synthetic()

    def _write_synthetic(self) -> None:
        """Put the latest set into the run's folder, for a picture and for other runs.

        A set that was given keeps the facts of its file; of a resumed run it is there already.
        """
        state = self._server.state
        if self._folder is None or state.synthetic is None:
            return
        path = self._folder.path / FILE_NAME
        if state.synthetic_loss is not None:
            save_synthetic(path, state.synthetic, self._dataset, self.config, state.synthetic_round)
        elif self._given is not None:
            save_stored(path, self._given)

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
        own = self._records.place(cohort)
        probing = config.cosines and config.evaluates(current)

        def train_group(worker: Worker, client_ids: list[int]) -> list[Upload]:
            self._check_interrupts()
            return self._training.clients(worker, client_ids, probing=probing)

        def train() -> list[Upload]:
            # those with the most work first, so that no thread is left alone with a long one at the end
            order = sorted(own, key=lambda client: -len(self._parts[client]))
            results = self._pool.map(train_group, groups(order, self._choice, self._pool.threads))
            return sorted((upload for result in results for upload in result), key=lambda up: up.client_id)

        uploads, stop = exchange(
            self._group,
            train,
            state.weights,
            self._compressor.spec,
            lambda: self._interrupts.signum,
        )
        server.finish_round(uploads, self._central.finetune)
        records = {up.client_id: up.record for up in uploads}
        self._records.keep(cohort, {client: records[client] for client in own}, current)
        if not bool(torch.isfinite(state.weights).all()):
            raise NonFiniteError(f"the global weights diverged in round {current}; {CALMER}")
        accuracy = loss = sharpness = None
        if config.evaluates(current):
            accuracy, loss, sharpness = self._central.evaluate(state.weights, current)
            if not math.isfinite(loss):
                raise NonFiniteError(f"the test loss is {loss} in round {current}; {CALMER}")
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


def _checkpoint_file(folder: Path) -> Path:
    """The file of a run's folder that makes its checkpoint one."""
    return folder / "checkpoint" / f"{STATE}.safetensors"
