"""The processes ("ranks") that share a run: what they say to each other, and how a lost one is noticed.

`torchrun --nproc-per-node R -m fedsynsam run …` starts R of them. They train parts of the same cohorts and exchange
the clients' encoded payloads, so that each aggregates the same bytes in the same order and all hold the same weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from fedsynsam import errors
from fedsynsam.errors import ConfigError, FedSynSamError, RankError

LAST_WORDS_SECONDS = 2.0  # in which the ranks that are left tell each other so


class Group:
    """One process alone: every exchange gives back what was put in. `RankGroup` is the same for several."""

    rank, size = 0, 1
    local_size = 1  # ranks on this machine

    def all_gather(self, blob: bytes) -> list[bytes]:
        """What each rank gave, in the order of ranks."""
        return [blob]

    def broadcast(self, blob: bytes) -> bytes:
        """What rank 0 gave; what the others give is not looked at."""
        return blob

    def send(self, blob: bytes, rank: int) -> None:
        """Hand bytes to another rank, which must call `receive`."""
        raise NotImplementedError("a process alone has nobody to send to")

    def receive(self, rank: int) -> bytes:
        """What another rank sends."""
        raise NotImplementedError("a process alone has nobody to receive from")

    def speaks_for(self, error: BaseException) -> bool:
        """Whether this rank is the one to tell the user of `error`."""
        return True

    def on_first(self, work: Callable[[], bytes]) -> bytes:
        """Do `work` on rank 0 alone, and give its result, or its typed error, to every rank."""
        if self.size == 1:
            return work()
        frame = b""
        if self.rank == 0:
            try:
                frame = b"\0" + work()
            except (FedSynSamError, OSError) as error:
                frame = b"\1" + json.dumps(describe(error)).encode()
        frame = self.broadcast(frame)
        if frame[:1] == b"\1":
            raise_described(json.loads(frame[1:]))
        return frame[1:]

    def deal(self, items: list[Any], work: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """`work(items)`, one result (JSON values) an item, with the items dealt out over the ranks."""
        if self.size == 1:
            return work(items)
        mine = work(items[self.rank :: self.size])
        parts = [json.loads(blob) for blob in self.all_gather(json.dumps(mine).encode())]
        return [parts[place % self.size][place // self.size] for place in range(len(items))]


class RankGroup(Group):
    """The ranks that torchrun started, over gloo (CPU) or NCCL (CUDA)."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_size = int(os.environ["LOCAL_WORLD_SIZE"])
        self._device = device

    def all_gather(self, blob: bytes) -> list[bytes]:
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(self.size)]
        with self._together():
            dist.all_gather(sizes, torch.tensor([len(blob)], device=self._device))
            lengths = [int(size) for size in sizes]
            padded = self._tensor(blob.ljust(max(1, *lengths), b"\0"))
            parts = [torch.empty_like(padded) for _ in lengths]
            dist.all_gather(parts, padded)
            return [_bytes(part)[:length] for part, length in zip(parts, lengths, strict=True)]

    def broadcast(self, blob: bytes) -> bytes:
        size = torch.tensor([len(blob)], device=self._device)
        with self._together():
            dist.broadcast(size, 0)
            content = self._tensor(blob) if self.rank == 0 else self._empty(int(size))
            dist.broadcast(content, 0)
            return _bytes(content)

    def send(self, blob: bytes, rank: int) -> None:
        with self._together():
            dist.send(torch.tensor([len(blob)], device=self._device), rank)
            dist.send(self._tensor(blob), rank)

    def receive(self, rank: int) -> bytes:
        size = torch.zeros(1, dtype=torch.int64, device=self._device)
        with self._together():
            dist.recv(size, rank)
            content = self._empty(int(size))
            dist.recv(content, rank)
            return _bytes(content)

    def speaks_for(self, error: BaseException) -> bool:
        """Of a lost rank, which may be rank 0, whoever is first; else rank 0, or the rank that alone has the error."""
        lost = isinstance(error, RankError)
        try:
            store = dist.distributed_c10d._get_default_store()
            if lost:
                return bool(store.add("fedsynsam/told", 1) == 1)
            key = f"fedsynsam/told/{zlib.crc32(str(error).encode())}"
            if self.rank == 0:
                store.set(key, "1")
                return True
            end = time.monotonic() + LAST_WORDS_SECONDS
            while time.monotonic() < end:
                if store.check([key]):
                    return False
                time.sleep(0.02)
            return True
        except RuntimeError:  # the store went down with torchrun itself
            return lost or self.rank == 0

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Inside, what PyTorch raises because a rank is gone becomes a `RankError` that names it."""
        try:
            yield
        except RuntimeError as error:
            lost = self._lost()
            what = f"the connection between the ranks broke ({str(error).splitlines()[0][:200]})"
            raise RankError(f"rank {lost[0]} of {self.size} is gone" if lost else what) from error

    def _lost(self) -> list[int]:
        """The ranks that do not answer: each that is left says so in torchrun's store, and waits a little."""
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"fedsynsam/left/{self.rank}", "1")
            end = time.monotonic() + LAST_WORDS_SECONDS
            missing = list(range(self.size))
            while missing and time.monotonic() < end:
                missing = [rank for rank in missing if not store.check([f"fedsynsam/left/{rank}"])]
                time.sleep(0.02)
            return missing
        except RuntimeError:  # the store went down with torchrun itself
            return []

    def _tensor(self, blob: bytes) -> Tensor:
        return torch.frombuffer(bytearray(blob), dtype=torch.uint8).to(self._device) if blob else self._empty(0)

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def local_rank() -> int | None:
    """The number of this process among those that torchrun started on this machine; None for a process alone."""
    return int(os.environ["LOCAL_RANK"]) if os.environ.get("WORLD_SIZE", "1") != "1" else None


@contextlib.contextmanager
def ranks(device: torch.device) -> Iterator[Group]:
    """Inside, the processes that torchrun started are a group, over NCCL if `device` is a GPU, else over gloo."""
    if local_rank() is None:
        yield Group()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not (dist.is_available() and getattr(dist, f"is_{backend}_available")()):
        raise ConfigError(f"this PyTorch has no {backend}, which several processes on {device.type} need")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the processes did not find each other ({str(error).splitlines()[0]})") from error
    try:
        yield RankGroup(device)
    except RankError:
        raise  # and leave the group as it is: taking leave of a rank that is gone can take forever
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def describe(error: Exception) -> list[str]:
    """An error as JSON values that another rank can raise again."""
    return [type(error).__name__, str(error)]


def raise_described(description: list[str]) -> NoReturn:
    """Raise the error that `describe` was given."""
    name, message = description
    raise getattr(errors, name, FedSynSamError)(message)
