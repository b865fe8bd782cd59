"""Tensors and a few numbers as checked bytes, and a folder of such files that are replaced, never changed.

The bytes are a safetensors file. Its metadata has one entry, `fedsynsam`: JSON with a version, the numbers, and a
CRC-32 of numbers and tensors, so that a damaged file is refused and not computed with. Several
entries would come in an order that changes from process to process; with one, equal contents have equal bytes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsynsam.errors import CheckpointError

VERSION, ENTRY = "3", "fedsynsam"
SYNC_THREADS = 16


def pack(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of `tensors` (any device; copies, so that two may share memory) and of `numbers` (JSON values)."""
    copies = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    text = json.dumps(numbers or {})
    entry = {"version": VERSION, "crc": checksum(copies, text), "numbers": text}
    return save(copies, metadata={ENTRY: json.dumps(entry)})


def unpack(
    blob: bytes, source: str, device: torch.device, advice: str = "start the run anew"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `pack`, with the tensors on `device`.

    Raises `CheckpointError` that names `source` and gives `advice` if the bytes are damaged or not `pack`'s.
    """
    try:
        tensors = load(blob)
        size = int.from_bytes(blob[:8], "little")
        metadata = json.loads(json.loads(blob[8 : 8 + size]).get("__metadata__", {}).get(ENTRY, "{}"))
        if (version := metadata.get("version")) != VERSION:
            raise CheckpointError(f"{source} has version {version!r}; this program reads {VERSION!r}; {advice}")
        text = metadata["numbers"]
        if metadata["crc"] != checksum(tensors, text):
            raise CheckpointError(f"{source} is damaged (its checksum does not match); {advice}")
        return {key: value.to(device) for key, value in tensors.items()}, json.loads(text)
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} is damaged ({type(error).__name__}: {error}); {advice}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the file, or the list of files in the folder, at `path` would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class TensorFolder:
    """Files of `pack`'s bytes by name. A name is written once and for all; new content gets a new name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, blob: bytes) -> None:
        """Write a file that is whole once it has its name, but may not survive a power cut before `sync`."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self._file(name).with_suffix(".part")
        temporary.write_bytes(blob)
        temporary.replace(self._file(name))

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises `CheckpointError` when it cannot be read."""
        try:
            return self._file(name).read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{self._file(name)} cannot be read ({error.strerror}); start the run anew"
            ) from error

    def sync(self, names: Iterable[str]) -> None:
        """Make the files `names`, and the folder's list of them, survive a power cut."""
        with ThreadPoolExecutor(SYNC_THREADS) as pool:  # the disk writes them together
            list(pool.map(sync, map(self._file, names)))
        sync(self.path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._file(name).unlink(missing_ok=True)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        try:
            return self._file(name).stat().st_size
        except FileNotFoundError:
            return None

    def keep_only(self, names: set[str]) -> None:
        """Remove what an interrupted run left beside the files `names`."""
        for entry in self.path.iterdir():
            if entry.stem not in names or entry.suffix != ".safetensors":
                entry.unlink()

    def source(self, name: str) -> str:
        """What to call a file in an error."""
        return str(self._file(name))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """CRC-32 of `text` and of the tensors' names, types, shapes and bytes, by name; always eight digits."""
    value = zlib.crc32(text.encode())
    for key, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{key} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
