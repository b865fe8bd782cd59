"""`fedsynsam advise`: from which bandwidth downwards compression pays, measured on this machine."""

from __future__ import annotations

import csv
import io
import re
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import Payload, aggregate, compressor
from ..errors import ConfigError
from ..fl.machine import device_name
from ..fl.runfolder import make_folder, versions
from ..fl.tensorfile import write_atomically
from ..report.figures import save_advice
from ..report.text import bytes_text
from .arguments import parse

SPECS = "quantize:8,quantize:4,topk:0.1,topk:0.01,topk:0.01+quantize:4"
DENSE = "dense float32"
AGGREGATED = 4  # payloads that are decoded and aggregated together when a server's time is taken
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class AdviseCommand:
    """Whether compressing uplinks pays: measures compressing, decoding and aggregating here, and compares them with the
    transfer time that is saved. Sender and receiver are taken to be machines like this one."""

    model_size: str = "25.6M"
    """Values of an update: 100k, 25.6M, 1G."""
    bandwidth: str = "100M"
    """Bits a second of a client's uplink: 10M, 1G."""
    clients: int = 10
    """Clients whose payloads the server decodes and aggregates in a round, one after the other."""
    specs: str = SPECS
    """Comma list of compressor specs."""
    repeats: int = 5
    """Passes over all specs, in turn; the medians count."""
    out: Path | None = None
    """Folder for advice.csv and advice.png."""


@dataclass(frozen=True)
class Cost:
    """What one spec costs: bytes of a payload, seconds of the client, and seconds of the server for each payload."""

    spec: str
    wire_bytes: int
    client: float
    server: float

    def seconds(self, bandwidth: float, clients: int) -> float:
        """Time from an update to the mean: compress and encode, transfer (all clients at once), decode, aggregate."""
        return self.client + 8 * self.wire_bytes / bandwidth + clients * self.server

    def pays_below(self, dense: Cost, clients: int) -> float:
        """The bandwidth in bits a second below which this is faster than `dense`; 0: never, infinity: always."""
        extra = (self.client + clients * self.server) - (dense.client + clients * dense.server)
        saved = 8 * (dense.wire_bytes - self.wire_bytes)
        if saved <= 0:
            return 0.0
        return saved / extra if extra > 0 else float("inf")


def main(argv: Sequence[str]) -> int:
    """Run `fedsynsam advise`; return the exit code."""
    command = parse(AdviseCommand(), argv, "fedsynsam advise")
    n, bandwidth = int(_number("model-size", command.model_size)), _number("bandwidth", command.bandwidth)
    if n < 1:
        raise ConfigError(f"model-size: is {command.model_size!r}; expected at least one value")
    for name, value in (("clients", command.clients), ("repeats", command.repeats)):
        if value < 1:
            raise ConfigError(f"{name}: is {value}; expected 1 or more")
    specs = [str(compressor(spec)) for spec in re.split(r",(?![^\[]*\])", command.specs)]
    if command.out is not None:
        make_folder(command.out)
    try:
        costs = measure_in_turn(list(dict.fromkeys(specs)), n, command.repeats)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        raise ConfigError(f"model-size: {command.model_size} values do not fit this machine's memory") from error
    dense = costs[0]
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(costs, command.clients, bandwidth))
    best = min(costs, key=lambda cost: cost.seconds(bandwidth, command.clients))
    gain = dense.seconds(bandwidth, command.clients) / best.seconds(bandwidth, command.clients)
    verdict = "dense float32: no spec pays there" if best is dense else f"{best.spec}, {gain:.1f} x faster than dense"
    console.print(f"fastest at {_bits(bandwidth)} and {command.clients} clients: {verdict}", markup=False)
    if command.out is not None:
        write_atomically(command.out / "advice.csv", _csv(costs, n, command.clients).encode())
        curves = {cost.spec: (cost.client + command.clients * cost.server, 8.0 * cost.wire_bytes) for cost in costs}
        print(command.out / "advice.csv")
        print(save_advice(curves, command.out / "advice.png", f"{n:,} values, {command.clients} clients"))
    return 0


def measure_in_turn(specs: Sequence[str], n: int, repeats: int) -> list[Cost]:
    """Return the medians over `repeats` passes of dense and of each spec, so that all share the machine's load."""
    passes = [[measure_dense(n), *(measure(spec, n) for spec in specs)] for _ in range(repeats)]
    return [_median(same) for same in zip(*passes, strict=True)]


def measure(spec: str, n: int) -> Cost:
    """Time compress + encode, and decode + aggregate of one payload among several, for an update of n values."""
    kind = compressor(spec)
    update = {"w": torch.randn(n, generator=torch.Generator().manual_seed(0))}
    state, blobs = kind.init(update), list[bytes]()
    for seed in range(AGGREGATED):
        payload, state = kind.compress(update, state, seed=seed)
        blobs.append(payload.encode())

    def client() -> None:
        kind.compress(update, state, seed=AGGREGATED)[0].encode()

    def server() -> None:
        aggregate([Payload.decode(blob, like=update) for blob in blobs])

    return Cost(spec, len(blobs[-1]), _seconds_of(client), _seconds_of(server) / AGGREGATED)


def measure_dense(n: int) -> Cost:
    """The same for a dense update without this library: its bytes as they are, and a running sum on the server."""
    update, total = torch.randn(n, generator=torch.Generator().manual_seed(0)), torch.zeros(n)
    blob = b""

    def client() -> None:
        nonlocal blob
        blob = update.numpy().tobytes()

    def server() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the bytes are not writable; they are only read
            total.add_(torch.frombuffer(blob, dtype=torch.float32), alpha=0.1)

    client_time = _seconds_of(client)
    return Cost(DENSE, len(blob), client_time, _seconds_of(server))


def _median(costs: Sequence[Cost]) -> Cost:
    client, server = ([getattr(cost, side) for cost in costs] for side in ("client", "server"))
    return Cost(costs[0].spec, costs[0].wire_bytes, statistics.median(client), statistics.median(server))


def _seconds_of(function: Callable[[], None]) -> float:
    """Time of the second call; the first touches memory for the first time."""
    function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _table(costs: Sequence[Cost], clients: int, bandwidth: float) -> Table:
    names = ("spec", "payload", "client", "server", "transfer", "round", "pays below")
    table = Table(*names, box=None, padding=(0, 2, 0, 0))
    table.columns[0].min_width = max(len(cost.spec) for cost in costs)
    for column in table.columns[1:]:
        column.justify = "right"
    for cost in costs:
        times = (cost.client, clients * cost.server, 8 * cost.wire_bytes / bandwidth, cost.seconds(bandwidth, clients))
        limit = "" if cost is costs[0] else _bits(cost.pays_below(costs[0], clients))
        table.add_row(Text(cost.spec), bytes_text(cost.wire_bytes), *map(_seconds, times), limit)
    return table


def _number(name: str, text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text)
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{name}: is {text!r}; expected a number such as 100k, 25.6M or 1G")
    return float(found[1]) * UNITS[found[2]]


def _bits(rate: float) -> str:
    if rate == float("inf"):
        return "always"
    if rate == 0:
        return "never"
    unit = max((unit for unit, size in UNITS.items() if size <= rate), key=UNITS.__getitem__, default="")
    return f"{rate / UNITS[unit]:.3g} {unit}bit/s"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _csv(costs: Sequence[Cost], n: int, clients: int) -> str:
    """One row a spec, and in each where, when and with what it was measured."""
    where = {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        **versions(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    rows = [
        {
            "spec": cost.spec,
            "n": n,
            "clients": clients,
            "wire_bytes": cost.wire_bytes,
            "client_seconds": f"{cost.client:.4g}",
            "server_seconds_each": f"{cost.server:.4g}",
            "pays_below_bps": "" if cost is costs[0] else f"{cost.pays_below(costs[0], clients):.6g}",
            **where,
        }
        for cost in costs
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
