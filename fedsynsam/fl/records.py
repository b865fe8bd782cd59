"""Where what the clients keep from round to round lies: on the device, in host memory, or in files; on which rank.

A client's record holds vectors of P float32 values by name: residuals, and what the algorithm has it remember
(`memory`). A client gets one when it is first trained, so that a run holds at most clients · vectors · P · 4 bytes,
and what one round touches depends on the cohort alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedsynsam.errors import CheckpointError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.distributed import Group
from fedsynsam.fl.tensorfile import TensorFolder, pack, unpack

Record = dict[str, Tensor]  # float32 [P] by name


class RecordStore:
    """The records of the clients of one rank, each known by its client and the round that it came from.

    `place` is "device", "host" (pinned for a GPU) or "disk". `folder` holds the files of the checkpoint, and on "disk"
    all others too; what is not in memory is read from there. `saved` are the rounds that the checkpoint refers to:
    those files stay until the next checkpoint is whole. Every record has the vectors `names`, like `like` [P] in size
    and device.
    """

    def __init__(self, place: str, names: tuple[str, ...], like: Tensor, folder: TensorFolder | None) -> None:
        self.place, self.names = place, names
        self.saved: dict[int, int] = {}  # client -> round of its file in the checkpoint
        self._device, self._size, self._folder = like.device, like.numel(), folder
        self._held: dict[int, Record] = {}

    def get(self, client: int, round_number: int) -> Record:
        """The record on the run's device."""
        if client in self._held:
            return {key: vector.to(self._device, non_blocking=True) for key, vector in self._held[client].items()}
        name, folder = record_name(client, round_number), self._files
        return self.parse(folder.read(name), folder.source(name))

    def parse(self, blob: bytes, source: str) -> Record:
        """The record in a file's bytes, on the run's device; `CheckpointError` naming `source` when it is damaged."""
        record, _ = unpack(blob, source, self._device)
        found = {name: (vector.shape, vector.dtype) for name, vector in record.items()}
        if found != dict.fromkeys(self.names, ((self._size,), torch.float32)):
            wanted = f"{self._size} values for each of {', '.join(self.names)}"
            raise CheckpointError(f"{source} does not hold {wanted}; start the run anew")
        return record

    def blob(self, client: int, round_number: int) -> bytes:
        """The record as the bytes of its file."""
        if client in self._held:
            return pack(self._held[client])
        return self._files.read(record_name(client, round_number))

    def put(self, client: int, round_number: int, record: Record, before: int | None) -> None:
        """Keep the record that `round_number` left, in place of the one of the round `before`."""
        if self.place == "disk":
            self._files.write(record_name(client, round_number), pack(record))
            self.drop(client, before)
        elif self.place == "host" and self._device.type != "cpu":
            self._held[client] = {name: vector.cpu().pin_memory() for name, vector in record.items()}
        else:
            self._held[client] = {name: _alone(vector) for name, vector in record.items()}

    def check_saved(self) -> None:
        """Raise `CheckpointError` naming a file of the checkpoint that is missing or cut off.

        Their contents are checked when they are used: reading all of them here could take minutes.
        """
        size = len(pack({name: torch.zeros(self._size) for name in self.names}))
        for client, round_number in self.saved.items():
            name = record_name(client, round_number)
            if (found := self._files.size(name)) != size:
                state = "is missing" if found is None else f"is damaged ({found} bytes instead of {size})"
                raise CheckpointError(f"{self._files.source(name)} {state}; start the run anew")

    def drop(self, client: int, round_number: int | None) -> None:
        """Forget a record, apart from the checkpoint's copy."""
        self._held.pop(client, None)
        if self.place == "disk" and round_number is not None and self.saved.get(client) != round_number:
            self._files.remove(record_name(client, round_number))

    @property
    def _files(self) -> TensorFolder:
        if self._folder is None:
            raise CheckpointError("a client's record was asked for that is neither in memory nor in a file")
        return self._folder


class Records:
    """The records of every client, spread over the ranks of `group`.

    A client stays on the rank that trained it last as long as no rank gets more than its share of a cohort; where one
    would, the client moves, and its record with it. `table`, `owner` and `changed` are the same on every rank.
    """

    def __init__(self, store: RecordStore, like: Tensor, group: Group) -> None:
        self.table: dict[int, tuple[int, int]] = {}  # client -> (round of its latest record, rounds it took part in)
        self.owner: dict[int, int] = {}  # client -> rank
        self.changed: set[int] = set()  # since the last checkpoint
        self.store, self._group = store, group
        self._fresh = dict.fromkeys(store.names, torch.zeros_like(like))

    @property
    def empty(self) -> bool:
        """Whether clients keep nothing at all."""
        return not self.store.names

    def place(self, cohort: list[int]) -> list[int]:
        """Give every client of the cohort a rank, move records where they are needed; the clients of this rank."""
        ranks = assign(cohort, self.owner, self._group.size)
        for client, rank in zip(cohort, ranks, strict=True):
            before = self.owner.get(client)
            if before is not None and before != rank and not self.empty:
                self._move(client, before, rank)
            self.owner[client] = rank
        return [client for client, rank in zip(cohort, ranks, strict=True) if rank == self._group.rank]

    def get(self, client: int) -> Record:
        """The record of a client that this rank trains: all new clients share one of zeros."""
        if client not in self.table or self.empty:
            return self._fresh
        return self.store.get(client, self.table[client][0])

    def times(self, client: int) -> int:
        """The rounds that a client took part in."""
        return self.table.get(client, (0, 0))[1]

    def keep(self, cohort: list[int], records: Mapping[int, Record], round_number: int) -> None:
        """Take over what a finished round left: `records` of this rank's clients, and the others' by name."""
        for client in cohort:
            before, times = self.table.get(client, (None, 0))
            if client in records and not self.empty:
                self.store.put(client, round_number, records[client], before)
            self.table[client] = (round_number, times + 1)
            self.changed.add(client)

    def write_changed(self, folder: TensorFolder | None) -> list[str]:
        """Put what changed since the last checkpoint into `folder` on rank 0 (None elsewhere); the files' names."""
        names = []
        for client in [] if self.empty else sorted(self.changed):
            owner, round_number = self.owner[client], self.table[client][0]
            names.append(record_name(client, round_number))
            if folder is not None and owner != self._group.rank:
                folder.write(names[-1], self._group.receive(owner))
            elif folder is not None and self.store.place != "disk":  # on disk it is there already
                folder.write(names[-1], self.store.blob(client, round_number))
            elif folder is None and owner == self._group.rank:
                self._group.send(self.store.blob(client, round_number), 0)
        return names

    def checkpointed(self, folder: TensorFolder | None) -> None:
        """The checkpoint that `write_changed` was for is whole: remove the files that it replaces."""
        for client in [] if folder is None or self.empty else self.changed:
            before, now = self.store.saved.get(client), self.table[client][0]
            if folder is not None and before is not None and before != now:
                folder.remove(record_name(client, before))
            self.store.saved[client] = now
        self.changed.clear()

    def restore(self, table: dict[int, tuple[int, int]]) -> None:
        """Go on from a checkpoint: all its records belong to rank 0, as files, until they are needed elsewhere."""
        self.table, self.owner, self.changed = dict(table), dict.fromkeys(table, 0), set()
        if self._group.rank == 0 and not self.empty:
            self.store.saved.update({client: round_number for client, (round_number, _) in table.items()})

    def _move(self, client: int, source: int, target: int) -> None:
        round_number = self.table[client][0]
        if source == self._group.rank:
            self._group.send(self.store.blob(client, round_number), target)
            self.store.drop(client, round_number)
        elif target == self._group.rank:
            record = self.store.parse(self._group.receive(source), f"client {client}'s record from rank {source}")
            self.store.put(client, round_number, record, None)


def record_name(client: int, round_number: int) -> str:
    """The name of the file with what `round_number` left with a client."""
    return f"client-{client}-round-{round_number}"


def _alone(vector: Tensor) -> Tensor:
    """`vector` in memory of its own: a row would keep its matrix alive."""
    return vector if vector.untyped_storage().nbytes() == vector.nbytes else vector.clone()


def assign(cohort: list[int], owner: dict[int, int], ranks: int) -> list[int]:
    """The rank of each client: where it was, unless that rank has its ceil(cohort / ranks) clients already.

    The others go, in order, to the rank with the most room.
    """
    room = [-(-len(cohort) // ranks)] * ranks
    chosen: dict[int, int] = {}
    for client in cohort:
        rank = owner.get(client)
        if rank is not None and room[rank]:
            chosen[client] = rank
            room[rank] -= 1
    for client in cohort:
        if client not in chosen:
            rank = max(range(ranks), key=lambda number: room[number])  # the first of the emptiest
            chosen[client] = rank
            room[rank] -= 1
    return [chosen[client] for client in cohort]


def record_bytes(config: RunConfig, parameters: int, vectors: int) -> int:
    """The most that all records of a run can take: `vectors` of P float32 values for every client that takes part."""
    return 4 * vectors * parameters * min(config.clients, config.rounds * config.cohort_size)


def choose_place(config: RunConfig, need: int, device: torch.device, group: Group, on_disk: bool) -> str:
    """`config.residual_store`, or for "auto" the first of device, host and disk of which half the free room will do.

    `need` is the bytes that all records take. On a CPU the device's memory is the host's. Without a folder (`on_disk`
    false) there is no disk to go to.
    """
    if config.residual_store != "auto":
        return "host" if config.residual_store == "device" and device.type == "cpu" else config.residual_store
    if device.type == "cuda" and 2 * need / group.size <= torch.cuda.mem_get_info(device)[0]:
        return "device"
    here = need * group.local_size / group.size  # the ranks of one machine share its memory
    return "host" if 2 * here <= available_memory() or not on_disk else "disk"


def available_memory() -> int:
    """Bytes of host memory that can be had without swapping: the system's figure, or the control group's if less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: all there is
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        return min(free, max(0, limit - used))
    except (OSError, ValueError):  # no control group, or none with a limit ("max")
        return free


def record_note(config: RunConfig, parameters: int, names: tuple[str, ...], place: str) -> str:
    """One line on what the records of a run, vectors called `names`, will take, and where."""
    need = record_bytes(config, parameters, len(names))
    clients = min(config.clients, config.rounds * config.cohort_size)
    where = {"device": "device memory", "host": "host memory", "disk": "files in the run's folder"}[place]
    what = "residuals" if names == ("residual",) else f"clients' state ({', '.join(names)})"
    several = f"{len(names)} vectors x " if len(names) > 1 else ""
    law = f"{clients:,} clients x {several}{parameters:,} values x 4 bytes"
    return f"{what}: {law} = at most {need / 1e6:,.1f} MB, in {where}"
