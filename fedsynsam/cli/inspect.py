"""`fedsynsam inspect`: what a payload file holds."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import CheckpointError, ConfigError, PayloadError
from ..fl.tensorfile import unpack
from ..wire import Payload
from .arguments import parse


@dataclass(frozen=True)
class InspectCommand:
    """What a payload file holds, section by section, in bytes and in bits for each value sent."""

    file: tyro.conf.Positional[Path] = tyro.MISSING
    """The file: the bytes of `Payload.encode()`."""


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam inspect`; return the exit code."""
    command = parse(InspectCommand(), argv, "fedsynsam inspect")
    try:
        blob = command.file.read_bytes()
    except OSError as error:
        raise ConfigError(f"file: {str(command.file)!r} cannot be read ({error.strerror})") from error
    try:
        info = Payload.inspect(blob)
    except PayloadError as error:
        with contextlib.suppress(CheckpointError):
            unpack(blob, "", torch.device("cpu"))
            raise ConfigError(
                f"file: {str(command.file)!r} is no payload but a checkpoint or a synthetic set"
            ) from error
        raise PayloadError(f"{command.file}: {error}") from error
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{info.spec} (format {info.version}), {info.num_sent} of {info.num_elements} values", markup=False)
    table = Table("section", "dtype", "bytes", "bits per value", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for part in info.sections:
        table.add_row(part.name, part.dtype, str(part.nbytes), f"{part.bits_per_value:.3f}")
    total = 8 * info.wire_bytes / info.num_sent if info.num_sent else 0.0
    table.add_row("total", "", str(info.wire_bytes), f"{total:.3f}", style="bold")
    console.print(table)
    dense = 4 * info.num_elements
    console.print(f"{dense / info.wire_bytes:.1f} x smaller than {dense} bytes of dense float32")
    tensors = Table("tensor", "shape", box=None, padding=(0, 2, 0, 0))
    for name, shape in info.manifest.entries:
        shown = name if name.isprintable() else repr(name)  # a terminal obeys what a hostile name may hold
        tensors.add_row(Text(shown or "(unnamed)"), " x ".join(map(str, shape)) or "scalar")
    console.print(tensors)
    return 0
