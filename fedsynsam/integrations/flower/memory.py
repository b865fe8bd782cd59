"""What a node keeps from round to round: the residual, and the last payload until it is known to have arrived.

It lies in Flower's `context.state`, which lasts as long as the SuperNode's process, or in a file that outlives it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context

from ...compress import State
from ...errors import ArgumentError, CheckpointError, StateError
from ...fl.tensorfile import pack, unpack, write_atomically
from ...wire import Payload
from .records import RECORD

FOLDER_KEY, NAME_KEY = "fedsynsam-folder", "partition-id"  # of the node's configuration

_log = logging.getLogger("flwr.fedsynsam")


@dataclass
class Memory:
    """A compressor's state, and the payload that it sent last as the answer to the message `replied_to`."""

    state: State
    pending: bytes = b""
    replied_to: str = ""

    def restore_lost(self, lost: list[str]) -> bool:
        """Put the last payload back into the residual if the server says that it is lost; whether it was."""
        if self.state.residual is None or not self.pending or self.replied_to not in lost:
            return False
        parts = Payload.decode(self.pending, like=self.state.manifest).decompress()
        assert isinstance(parts, dict)
        self.state.residual = self.state.residual + torch.cat([part.reshape(-1) for part in parts.values()])
        self.pending, self.replied_to = b"", ""
        return True


def node_number(context: Context) -> int | None:
    """The `partition-id` that the node was started with, if it was; ArgumentError unless it is a whole number."""
    found = context.node_config.get(NAME_KEY)
    if found is None or (isinstance(found, int) and not isinstance(found, bool)):
        return found
    if isinstance(found, str) and re.fullmatch("-?[0-9]+", found):
        return int(found)
    raise ArgumentError(f"{NAME_KEY} of the node's configuration is {found!r}; expected a whole number")


class Place:
    """Where the memory of this node lies: in a file of `folder`, or in `context.state` if there is no folder.

    The folder is the one that the SuperNode was started with (`--node-config 'fedsynsam-folder="…" partition-id=0'`),
    else the argument's. The file is named after `partition-id`, because a node's id changes when it starts again.
    `carry_over` goes on from the residual of another run.
    """

    def __init__(self, context: Context, folder: str | Path | None, run: int, carry_over: bool) -> None:
        self._context, self._run, self._carry_over = context, run, carry_over
        self._path: Path | None = None
        folder = context.node_config.get(FOLDER_KEY, folder)
        if folder is not None:
            number = node_number(context)
            if number is None:
                raise ArgumentError("a folder for residuals needs a name for this node that survives a restart: start "
                                    f"its SuperNode with --node-config '{NAME_KEY}=N'")  # fmt: skip
            self._path = Path(str(folder)).expanduser() / f"node-{number}.safetensors"

    def load(self, fresh: State) -> Memory:
        """Return what this node kept, or a memory of `fresh` if that is nothing.

        Raises StateError naming the file if it is damaged or belongs to another model.
        """
        blob, source = self._read()
        if blob is None:
            return Memory(fresh)
        try:
            tensors, numbers = unpack(blob, source, torch.device("cpu"))
            if numbers["run"] != self._run and not self._carry_over:
                _log.warning("%s is of another run (%s) and begins anew; carry_over=True would go on from it",
                             source, numbers["run"])  # fmt: skip
                return Memory(fresh)
            pending = tensors.pop("pending").numpy().tobytes()
            return Memory(fresh.load_state_dict(tensors), pending, str(numbers["replied_to"]))
        except (CheckpointError, StateError, KeyError) as error:
            raise StateError(f"{source} cannot be used ({error}); without it this node begins with nothing left "
                             "unsent: remove it, or choose another folder") from error  # fmt: skip

    def save(self, memory: Memory) -> None:
        """Keep `memory`; after a crash at any moment there is the old one or the new one."""
        tensors = memory.state.state_dict()
        tensors["pending"] = torch.frombuffer(bytearray(memory.pending), dtype=torch.uint8)
        blob = pack(tensors, {"run": self._run, "replied_to": memory.replied_to})
        if self._path is None:
            self._context.state[RECORD] = ConfigRecord({"memory": blob})
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, blob)

    def _read(self) -> tuple[bytes | None, str]:
        if self._path is not None:
            return (self._path.read_bytes() if self._path.exists() else None), str(self._path)
        record = self._context.state.config_records.get(RECORD)
        return (None if record is None else record["memory"]), "context.state"
