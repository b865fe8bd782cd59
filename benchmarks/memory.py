"""What hostile payloads make a receiver allocate: `python -m benchmarks.memory --out FILE.csv` (Linux).

For each payload the peak of resident memory over what it was before, while `Payload.decode`, and then `aggregate` or
`decompress`, work on it; the bytes themselves, which the receiver holds already, do not count. Payloads are those of
tests/fuzz/corpus, headers that claim what is not there, and bodies of the right length that are legal, random, all
ones, or wrong in their last byte. `times` = peak over the manifest's size, 4 bytes an element; the bound is

    3 · 4n + 128 · (characters of the layout) + 8 MiB

The middle term is for the header, which is read before it is known to be right. `inspect`, which knows no manifest,
is held to 3 times the length of the bytes, 4 bytes for each index that is sent, and 128 times the longest header.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

import fedsynsam as fs
from fedsynsam.wire.container import MAX_HEADER_LENGTH, header_bytes
from fedsynsam.wire.manifest import Manifest
from fedsynsam.wire.plan import parse_plan

from .provenance import ROOT, provenance
from .rows import write_rows

CORPUS = ROOT / "tests" / "fuzz" / "corpus"
MIB = 1 << 20
FACTOR, HEADER_FACTOR, CONSTANT = 3, 128, 8 * MIB
SPECS = (
    "none", "topk:1", "topk:0.5", "topk:0.01", "chunktopk:1", "chunktopk:0.5[chunk=64]", "quantize:8[bucket=8]",
    "quantize:4", "quantize:1[bucket=65536]", "topk:1+quantize:8[bucket=8]", "topk:0.9+quantize:1",
)  # fmt: skip
ALLOCATION = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """Hostile bytes and the manifest that they meet; None: they are inspected."""

    name: str
    blob: bytes
    like: Manifest | None
    indices: int = 0  # that are sent, where they are inspected

    @property
    def bound(self) -> int:
        """The most bytes that may be allocated."""
        if self.like is None:
            return FACTOR * len(self.blob) + 4 * self.indices + HEADER_FACTOR * MAX_HEADER_LENGTH
        return FACTOR * self.size + HEADER_FACTOR * len(self.like.layout) + CONSTANT

    @property
    def size(self) -> int:
        """Bytes of the manifest's elements; of the payload where there is no manifest."""
        return len(self.blob) if self.like is None else 4 * self.like.num_elements


def manifests(n: int) -> dict[str, Manifest]:
    """One tensor of n elements, n elements in many tensors, and many tensors of one element."""
    many = n // 400
    return {
        "one tensor": Manifest((("w", (n,)),)),
        "many tensors": Manifest(tuple((f"layer{i}.weight", (400,)) for i in range(many))),
        "tiny tensors": Manifest(tuple((f"layer{i}.bias", (1,)) for i in range(many))),
    }


def bodies(spec: str, like: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield bytes of the right length behind the right header of `spec`."""
    generator = torch.Generator().manual_seed(0)
    kind, update = fs.compressor(spec), like.split(torch.randn(like.num_elements, generator=generator))
    payload, _ = kind.compress(update, kind.init(update), seed=0)
    head, legal = len(header_bytes(spec, like)), payload.encode()
    length = len(legal) - head
    yield "legal", legal
    yield "last byte", legal[:-1] + bytes([legal[-1] ^ 0xFF])
    yield "zeros", legal[:head] + bytes(length)
    yield "ones", legal[:head] + b"\xff" * length
    yield "random", legal[:head] + random.Random(0).randbytes(length)
    for section in parse_plan(spec).sections(like.num_elements)[:1]:  # indices or scales wrong, all else legal
        yield (
            "first part random",
            legal[:head] + random.Random(1).randbytes(section.nbytes) + legal[head + section.nbytes :],
        )
    if parse_plan(spec).bits is None:
        yield "last value NaN", legal[:-4] + b"\0\0\xc0\x7f"


def headers(like: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield headers that claim much, most of them with nothing behind."""
    claim = {"dtype": "F32", "shape": [2**31 - 1], "data_offsets": [0, 2**33 - 4]}
    metadata = {"fedsynsam": "1", "layout": like.layout, "spec": "none"}
    yield "length 2^63", (2**63).to_bytes(8, "little") + b"{}"
    yield "length 1 MiB of nothing", MIB.to_bytes(8, "little")
    yield "2^31 values claimed", framed(json.dumps({"__metadata__": metadata, "values": claim}))
    huge = {**metadata, "layout": "w:2147483647"}
    yield "2^31 elements in the layout", framed(json.dumps({"__metadata__": huge, "values": claim}))
    room = len(like.layout) + 900
    for name, item in (("lists", "[],"), ("objects", '{"a":0},'), ("strings", '"é",'), ("numbers", "1234,")):
        yield f"header of {name}", framed("[" + item * (room // len(item.encode())) + "0]")
    yield "header of nested lists", framed("[" * room)
    layout = ",".join(f"{i:x}:" for i in range(room // 6))
    yield "layout of scalars", framed(json.dumps({"__metadata__": {**metadata, "layout": layout}}))
    yield "long tail", header_bytes("topk:0.01", like) + bytes(5 * 4 * like.num_elements)


def framed(text: str) -> bytes:
    """Return a header with its length."""
    return len(text.encode()).to_bytes(8, "little") + text.encode()


def cases(n: int) -> Iterator[Case]:
    """Yield all hostile payloads for manifests of about n elements."""
    for name, like in manifests(n).items():
        for spec in SPECS if name != "tiny tensors" else SPECS[:1]:
            yield from (Case(f"{spec}, {kind}; {name}", blob, like) for kind, blob in bodies(spec, like))
        yield from (Case(f"{kind}; {name}", blob, like) for kind, blob in headers(like))
    like = Manifest((("w", (MIB,)),))
    yield from (Case(f"inspect: {kind}", blob, None) for kind, blob in headers(like))
    many = Manifest((("w", (8 * n,)),))  # each index of these takes two bits
    dense = ((kind, blob) for kind, blob in bodies("topk:1+quantize:1[bucket=65536]", many))
    yield from (Case(f"inspect, dense: {kind}", blob, None, many.num_elements) for kind, blob in dense)
    wide = Manifest((("w" * (MIB - 8192), (1,)),))  # the longest header that inspect reads
    yield from (Case(f"inspect, longest: {kind}", blob, None) for kind, blob in headers(wide))
    fuzzer = fuzzing()
    for path in sorted(CORPUS.iterdir()):
        if blob := fuzzer.blob_of(path.read_bytes()):
            yield Case(f"corpus {path.name[:8]}", blob, Manifest.of(fuzzer.LIKE))


def fuzzing() -> ModuleType:
    """Return tests/fuzz/payload.py, which knows what its corpus means."""
    spec = importlib.util.spec_from_file_location("fuzz_payload", CORPUS.parent / "payload.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def receive(case: Case, use: str) -> str:
    """Do what a receiver does with one payload; return what came of it."""
    try:
        if case.like is None:
            fs.Payload.inspect(case.blob)
            return "legal"
        payload = fs.Payload.decode(case.blob, like=case.like)
        if use == "aggregate":
            fs.aggregate([payload])
        elif use == "decompress":
            payload.decompress()
        return "legal"
    except fs.PayloadError as error:
        return f"refused: {error}"[:60]


def peak_of(work: Callable[[], str]) -> tuple[int, str]:
    """Return the most resident bytes while `work` runs, over those before it, and what it returns."""
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    outcome = work()
    return status("VmHWM") - before, outcome


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def measure(n: int) -> None:
    """Measure all cases in this process; print each row as JSON."""
    torch.set_num_threads(1)
    warm = Case("warm", next(blob for _, blob in bodies("topk:0.5+quantize:8", manifests(4000)["one tensor"])), None)
    receive(warm, "")
    for case in cases(n):
        for use in ("decode",) if case.like is None else ("decode", "aggregate", "decompress"):
            peak, outcome = peak_of(lambda case=case, use=use: receive(case, use))  # type: ignore[misc]
            row = {"case": case.name, "use": use, "size": case.size, "bytes": len(case.blob), "peak": peak}
            row |= {"times": f"{peak / max(1, case.size):.3f}", "bound": case.bound, "within": peak <= case.bound}
            print(json.dumps({**row, "outcome": outcome}))
            if outcome != "legal":
                break


def run(n: int) -> list[dict[str, object]]:
    """Return the rows, measured in a process whose allocator gives freed memory back at once."""
    words = [sys.executable, "-m", "benchmarks.memory", "--measure", "--n", str(n)]
    done = subprocess.run(
        words, env={**os.environ, **ALLOCATION}, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=4_000_000, help="elements of the manifests")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.n)
        return
    if options.out is None:
        parser.error("--out FILE.csv is needed")
    source, rows = provenance(torch.device("cpu")), run(options.n)
    write_rows([row | source for row in rows], [*rows[0], *source], options.out)
    large = [row for row in rows if int(str(row["size"])) >= 4 * options.n]
    print(f"{len(rows)} measurements, {sum(not row['within'] for row in rows)} beyond the bound; most for the large "
          f"manifests: {max(float(str(row['times'])) for row in large):.2f} times their size")  # fmt: skip


if __name__ == "__main__":
    main()
