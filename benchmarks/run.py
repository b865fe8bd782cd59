"""Checks each operation against the reference, then times it, its peers and a memory copy; one CSV row each.

A row of the operation itself has as `backend` the backend that served it (`cpu`, `cuda`, `triton`, `reference`). Rows
of peers: `allocating` (the same without out=), `eager` (the PyTorch pipeline of the same job), `compiled` (that under
torch.compile), and parts of the job in other libraries. `speedup` in a peer's row is its time over that of the
operation on the backend named in `against`, the one that a plain call takes. `times_copy` is the time over that of a
plain copy of the floor bytes, taken in turn with the operation. On a GPU every call is timed by CUDA events and starts
with a cold L2 cache. The file is written anew after each case, so that a run cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsynsam import use_backend
from fedsynsam.ops import backend

from .case import Built, Case
from .cases import CASES
from .goals import judge, verdict
from .provenance import provenance
from .rows import write_rows
from .timing import Copy, Times, measure, memory

DEFAULT_N = {"cpu": 25_600_000, "cuda": 100_000_000}
CHECKED_N = 200_003  # elements a row, prime: every chunk and bucket size leaves a short one
GPU = ("cuda", "triton", "reference")
PEERS = ("allocating", "eager", "compiled", "libraries")
FIELDS = (
    *("op", "label", "backend", "rows", "n", "density", "bits", "threads", "repetitions"),
    *("median_ms", "p20_ms", "p80_ms", "floor_bytes", "floor_gbps", "copy_gbps", "copy_fraction"),
    *("times_copy", "goal", "met", "speedup", "against", "extra_bytes", "scratch_bytes"),
    *("device", "driver", "cuda", "torch", "triton", "numpy", "python", "commit", "date"),
)


def backends_of(case: Case, device: torch.device, wanted: Sequence[str]) -> list[str]:
    """Return the backends to time, the one that a plain call takes first: those of `wanted`, or all if that is empty.

    An operation that no backend of the device serves runs on the reference, and is reported as that.
    """
    kernel = case.kernel or case.op
    chosen = backend.choose(kernel, device)
    usable = [chosen]
    if device.type != "cpu":
        usable += [name for name in backend.GPU_BACKENDS.get(kernel, ()) if backend.why_not(name) is None]
    return [name for name in dict.fromkeys(usable) if not wanted or name in wanted]


def on(name: str, function: Callable[[], Any]) -> Callable[[], Any]:
    """Return `function` as run on backend `name`."""

    def run() -> Any:
        with use_backend(name):
            return function()

    return run


def check(case: Case, rows: int, n: int, device: torch.device, names: Sequence[str] = ()) -> None:
    """Compare backends with the reference on a moderately sized input; raise SystemExit if they differ.

    names: the backends; if there are none, the one that a plain call takes.
    """
    rows, n = min(rows, 3), min(n, CHECKED_N)
    for name in names or (None,):
        ours, reference = case.build(rows, n, device), case.build(rows, n, device)
        with use_backend(name) if name is not None else contextlib.nullcontext():
            got = [*ours.run(), *ours.state]
        with use_backend("reference"):
            wanted = [*reference.run(), *reference.state]
        for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
            same = torch.allclose(a, b, rtol=case.rtol, atol=0.0) if case.rtol else _same_bits(a, b)
            if not same:
                where = f"{case.label}{f' on {name}' if name is not None else ''}"
                raise SystemExit(f"{where}: output {number} of {rows} x {n} differs from the reference; nothing timed")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def peers(case: Case, built: Built, chosen: Sequence[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (name, function) of each peer that was asked for."""
    if built.allocating is not None and "allocating" in chosen:
        yield "allocating", built.allocating
    if built.eager is not None and "eager" in chosen:
        yield "eager", built.eager
    if built.eager is not None and case.compiled and "compiled" in chosen:
        torch.compiler.reset()
        yield "compiled", torch.compile(built.eager, dynamic=False)
    if "libraries" in chosen:
        yield from built.libraries.items()


def bench(
    case: Case,
    rows: int,
    n: int,
    device: torch.device,
    seconds: float,
    chosen: Sequence[str],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the rows of one case: a row for each backend of `names`, then the peers; `judge` adds `goal` and `met`."""
    built = case.build(rows, n, device)
    # The whole pipeline of compress and encode has several operations: no one backend serves them all.
    runs = [built.run if case.op == "end_to_end" else on(name, built.run) for name in names]
    taken = [memory(run, device) for run in runs]
    floor = case.floor(rows, n)
    copy = Copy(floor, device)
    *own, copied = measure([*runs, copy.run], seconds, device)
    bandwidth = 2 * copy.bytes / copied.median
    shared = {
        "op": case.op,
        "label": case.label,
        "rows": rows,
        "n": n,
        "density": "" if case.density is None else f"{case.density:g}",
        "bits": "" if case.bits is None else case.bits,
        "threads": torch.get_num_threads() if device.type == "cpu" else "",
        "floor_bytes": round(floor),
        "copy_gbps": f"{bandwidth / 1e9:.2f}",
    }

    def row(name: str, times: Times) -> dict[str, Any]:
        copies = times.median * bandwidth / floor
        return {
            **shared,
            "backend": name,
            "repetitions": times.repetitions,
            "median_ms": f"{times.median * 1e3:.4f}",
            "p20_ms": f"{times.p20 * 1e3:.4f}",
            "p80_ms": f"{times.p80 * 1e3:.4f}",
            "floor_gbps": f"{floor / times.median / 1e9:.2f}",
            "copy_fraction": f"{1 / copies:.3f}",
            "times_copy": f"{copies:.3f}",
        }

    rows_out = []
    for name, times, used in zip(names, own, taken, strict=True):
        sizes = {} if used is None else {"extra_bytes": sum(used), "scratch_bytes": used.scratch}
        rows_out.append({**row(name, times), **sizes})
    del copy
    for name, function in peers(case, built, chosen):
        try:
            (times,) = measure([function], seconds, device, minimum=3)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            print(f"{case.label}: no compiled peer here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        except torch.OutOfMemoryError as error:
            print(f"{case.label}: {name} does not fit in memory: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        speedup = f"{times.median / own[0].median:.3g}"
        rows_out.append({**row(name, times), "speedup": speedup, "against": names[0]})
    return rows_out


def show(row: dict[str, Any]) -> None:
    """Print one line of progress."""
    against = f"{row['speedup']:>7} x ours" if "speedup" in row else f"{row['times_copy']:>7} x copy"
    size = f"{row['rows']}x{row['n']}"
    print(f"{row['label']:<42}{row['backend']:<24}{size:>14}{row['median_ms']:>12} ms {against}", flush=True)


def numbers(text: str) -> list[int]:
    """Return the positive integers of a comma list; `1e6` and `1_000_000` are fine."""
    try:
        values = [int(float(word)) for word in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma list of positive numbers")
    return values


def shapes(text: str) -> list[tuple[int, int]]:
    """Return the (rows, n) of a comma list such as `1x1e8,64x1e6`."""
    pairs = [numbers(word.replace("x", ",")) for word in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma list of ROWSxN")
    return [(rows, n) for rows, n in pairs]


def words(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma lists of the `known` words."""

    def parse(text: str) -> list[str]:
        chosen = [word for word in text.split(",") if word and word != "none"]
        if unknown := [word for word in chosen if word not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; known: {', '.join(known)}")
        return chosen

    return parse


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    ops = list(dict.fromkeys(case.op for case in CASES))
    result = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    result.add_argument("--op", type=words(ops), default=ops, help=f"comma list of {', '.join(ops)}; default: all")
    result.add_argument(
        "--backend", type=words(GPU), default=[], help=f"on a GPU: of {', '.join(GPU)}; default: all that serve the op"
    )
    result.add_argument("--only", default="", help="only cases whose label holds this")
    result.add_argument("--n", type=numbers, help="elements a row, comma list; default: 25.6 M (cpu), 100 M (cuda)")
    result.add_argument("--rows", type=numbers, default=[1], help="rows, comma list; default: 1")
    result.add_argument("--sizes", type=shapes, help="instead of --n and --rows: comma list such as 1x1e8,64x1e6")
    result.add_argument("--threads", type=int, help="threads on the CPU; default: PyTorch's choice")
    result.add_argument("--seconds", type=float, default=1.0, help="time for each function, default 1.0")
    result.add_argument("--peers", type=words(PEERS), default=list(PEERS), help=f"of {', '.join(PEERS)}; or none")
    result.add_argument("--out", type=Path, help="CSV file; default: benchmarks/results/DEVICE.csv")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line asks for."""
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no CUDA device; use --device cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    if device.type == "cpu" and (reason := backend.why_not("cpu")) is not None:
        print(f"WARNING: this times the reference backend: {reason}", file=sys.stderr)
    out = options.out or Path(__file__).parent / "results" / f"{device.type}.csv"
    cases = [case for case in CASES if case.op in options.op and options.only in case.label]
    if not cases:
        raise SystemExit(f"no case of {', '.join(options.op)} has {options.only!r} in its label")
    sizes = options.sizes or [(rows, n) for n in options.n or [DEFAULT_N[device.type]] for rows in options.rows]
    names = {case.label: backends_of(case, device, options.backend) for case in cases}
    for case in (case for case in cases if not names[case.label]):
        print(f"{case.label}: no {' or '.join(options.backend)} kernel; left out", file=sys.stderr)
    cases = [case for case in cases if names[case.label]]
    for case in cases:
        check(case, *sizes[0], device, names[case.label] if device.type != "cpu" else ())
    print(f"checked: {len(cases)} cases agree with the reference")
    where = provenance(device)
    results: list[dict[str, Any]] = []
    with torch.no_grad():
        for case, (rows, n), chosen in plan(cases, sizes, options.peers):
            new = bench(case, rows, n, device, options.seconds, chosen, names[case.label])
            if chosen == ["compiled"]:
                new = [row for row in new if "speedup" in row]  # the operation has its row from before
            for row in new:
                show(row)
            results += new
            judge(results, cases, device.type)
            write_rows([{**row, **where} for row in results], FIELDS, out)
            gc.collect()
    print(*verdict(results), f"{len(results)} rows in {out}", sep="\n")


def plan(
    cases: Sequence[Case], sizes: Sequence[tuple[int, int]], peers: Sequence[str]
) -> Iterator[tuple[Case, tuple[int, int], list[str]]]:
    """Yield what to time together, in order: (case, size, peers).

    Compilation takes up to half a minute a case, so it is done at the first size only, and last.
    """
    for size in sizes:
        for case in cases:
            yield case, size, [peer for peer in peers if peer != "compiled"]
    if "compiled" in peers:
        for case in cases:
            if case.compiled:
                yield case, sizes[0], ["compiled"]
