"""The folder `checkpoint/` of a run: `state.safetensors`, and files of clients that it refers to.

`state` holds everything in `ServerState` and a table of the clients; each client's record, and for FedLESAM each set of
weights that is some client's last, is a file of its own, written once, whose name ends in its round. A checkpoint adds
the new files, makes them durable, then replaces `state`, then removes the files that only the older one referred to: a
crash at any point leaves one whole checkpoint. What it costs depends on the clients trained since the last one, not on
all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsynsam.errors import CheckpointError
from fedsynsam.fl.distributed import Group
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.records import Records, record_name
from fedsynsam.fl.server import ServerState
from fedsynsam.fl.synthetic import SyntheticSet
from fedsynsam.fl.tensorfile import TensorFolder, pack, unpack, write_atomically

STATE = "state"
EVIDENCE = ("weights", "descents", "mixes")
SYNTHETIC_NUMBERS = ("synthetic_round", "synthetic_loss")  # not the seconds: equal runs have equal checkpoints


class Checkpoint:
    """Saves and loads the state of a run; every rank calls both, rank 0 alone (`folder` not None) has the files."""

    def __init__(self, folder: TensorFolder | None, group: Group) -> None:
        self._folder, self._group = folder, group
        self._starts: set[int] = set()  # rounds whose weights have a file

    def save(self, state: ServerState, records: Records) -> None:
        """Write a checkpoint over the older one."""
        names = records.write_changed(self._folder)
        if self._folder is not None:
            for round_number in state.starts.keys() - self._starts:
                names.append(_start_name(round_number))
                self._folder.write(names[-1], pack({"weights": state.starts[round_number]}))
            self._folder.path.mkdir(parents=True, exist_ok=True)
            self._folder.sync(names)
            write_atomically(self._folder.path / f"{STATE}.safetensors", _state_blob(state, records.table))
            for round_number in self._starts - state.starts.keys():
                self._folder.remove(_start_name(round_number))
            self._starts = set(state.starts)
        records.checkpointed(self._folder)

    def load(self, fresh: ServerState, records: Records) -> ServerState | None:
        """The saved state, or None when there is none; `fresh`, a state of the same run, gives shapes and device.

        Raises `CheckpointError` when a file is damaged or missing, or does not belong to this configuration.
        """
        device, source = fresh.weights.device, self._source(STATE)
        exists = self._group.on_first(lambda: b"yes" if self._folder and self._folder.size(STATE) is not None else b"")
        state, table = None, dict[int, tuple[int, int]]()
        if exists:
            tensors, numbers = unpack(self._group.on_first(lambda: self._read(STATE)), source, device)
            try:
                state = _restored(tensors, numbers, fresh)
                table = {client: (round_number, step) for client, round_number, step in tensors["clients"].tolist()}
            except (KeyError, ValueError, TypeError) as error:
                message = f"{source} is damaged ({type(error).__name__}: {error}); start the run anew"
                raise CheckpointError(message) from error
            for round_number in sorted(set(state.last_round.values())):
                name = _start_name(round_number)
                blob = self._group.on_first(lambda name=name: self._read(name))  # type: ignore[misc]
                state.starts[round_number] = _like(unpack(blob, self._source(name), device)[0], fresh, name)
            self._starts = set(state.starts)
        records.restore(table)
        self._group.on_first(lambda: self._tidy(state, records))
        return state

    def _read(self, name: str) -> bytes:
        return b"" if self._folder is None else self._folder.read(name)

    def _source(self, name: str) -> str:
        return name if self._folder is None else self._folder.source(name)

    def _tidy(self, state: ServerState | None, records: Records) -> bytes:
        """Check that all files are there, and remove those of a checkpoint that was never finished."""
        if self._folder is not None and self._folder.path.exists():
            records.store.check_saved()
            names = {record_name(*pair) for pair in records.store.saved.items()}
            names |= {_start_name(round_number) for round_number in self._starts}
            self._folder.keep_only(names | ({STATE} if state is not None else set()))
        return b""


def _state_blob(state: ServerState, table: Mapping[int, tuple[int, int]]) -> bytes:
    tensors = {"weights": state.weights}
    if state.previous is not None:
        tensors["previous"] = state.previous
    tensors["clients"] = _table(table)
    tensors |= {f"memory/{name}": vector for name, vector in state.memory.items()}
    tensors["holders"] = _rows(sorted(state.holders.items()), 2)
    tensors["last"] = _rows(sorted(state.last_round.items()), 2)
    if state.synthetic is not None:
        tensors |= {f"synthetic/{key}": value for key, value in state.synthetic.tensors().items()}
    if state.evidence is not None:
        tensors |= _evidence_tensors(state.evidence)
    return pack(tensors, {"round": state.round, **{key: getattr(state, key) for key in SYNTHETIC_NUMBERS}})


def load_weights(folder: Path) -> tuple[Tensor, int]:
    """The global weights [P] in the checkpoint `folder`, on the CPU, and the number of finished rounds."""
    files = TensorFolder(folder)
    if files.size(STATE) is None:
        raise CheckpointError(f"{folder} holds no checkpoint; make a run that keeps one")
    tensors, numbers = unpack(files.read(STATE), files.source(STATE), torch.device("cpu"))
    return tensors["weights"], int(numbers["round"])


def _restored(tensors: dict[str, Tensor], numbers: dict[str, Any], fresh: ServerState) -> ServerState:
    weights = _like(tensors, fresh, STATE)
    state = ServerState(weights, int(numbers["round"]), **{key: numbers[key] for key in SYNTHETIC_NUMBERS})
    state.previous = tensors.get("previous")
    state.holders, state.last_round = dict(tensors["holders"].tolist()), dict(tensors["last"].tolist())
    state.memory = _within(tensors, "memory")
    if synthetic := _within(tensors, "synthetic"):
        state.synthetic = SyntheticSet(**synthetic)
    if fresh.evidence is not None:
        state.evidence = _evidence(tensors, fresh.evidence)
    return state


def _evidence(tensors: dict[str, Tensor], fresh: Evidence) -> Evidence:
    parts = {name: _within(tensors, f"evidence/{name}") for name in EVIDENCE}
    by_round = {name: {int(key): part[key] for key in sorted(part, key=int)} for name, part in parts.items()}
    return Evidence(fresh.window, fresh.label_mix, **by_round)


def _like(tensors: dict[str, Tensor], fresh: ServerState, name: str) -> Tensor:
    """The weights in a file, if they are those of this model."""
    weights = tensors["weights"]
    if weights.shape != fresh.weights.shape:
        raise CheckpointError(f"{name} has {weights.numel()} weights, the model {fresh.weights.numel()}")
    return weights


def _evidence_tensors(evidence: Evidence) -> dict[str, Tensor]:
    return {
        f"evidence/{name}/{round_number}": vector
        for name in EVIDENCE
        for round_number, vector in getattr(evidence, name).items()
    }


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors called `prefix/rest`, as {rest: tensor}."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + "/")}


def _table(table: Mapping[int, tuple[int, int]]) -> Tensor:
    """Rows (client, round, step) as int64 [clients, 3], by client; through arrays, because there may be many."""
    clients = np.fromiter(table, np.int64, len(table))
    entries = np.fromiter(itertools.chain.from_iterable(table.values()), np.int64, 2 * len(table)).reshape(-1, 2)
    return torch.from_numpy(np.column_stack([clients, entries])[np.argsort(clients)])


def _rows(rows: list[tuple[int, ...]], width: int) -> Tensor:
    """Rows of numbers as int64 [len(rows), width]."""
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, width)


def _start_name(round_number: int) -> str:
    return f"weights-round-{round_number}"
