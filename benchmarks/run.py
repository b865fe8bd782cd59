"""Checks each operation against the reference, then times it, its peers and a memory copy; one CSV row each.

A row of the operation itself has as `backend` the backend that served it (`cpu`, `cuda`, `triton`, `reference`). Rows
of peers: `allocating` (the same without out=), `eager` (the PyTorch pipeline of the same job), `compiled` (that under
torch.compile), and parts of the job in other libraries. `speedup` in a peer's row is its time over the operation's.
`times_copy` is the time over that of a plain copy of the floor bytes, taken in turn with the operation.
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsynsam import use_backend
from fedsynsam.ops import backend

from .case import CODING_GOAL, EAGER_GOAL, GOALS, Built, Case
from .cases import CASES
from .provenance import provenance
from .timing import Copy, Times, extra_memory, measure

DEFAULT_N = {"cpu": 25_600_000, "cuda": 100_000_000}
CHECKED_N = 200_003  # elements a row, prime: every chunk and bucket size leaves a short one
PEERS = ("allocating", "eager", "compiled", "libraries")
FIELDS = (
    *("op", "label", "backend", "rows", "n", "density", "bits", "threads", "repetitions"),
    *("median_ms", "p20_ms", "p80_ms", "floor_bytes", "floor_gbps", "copy_gbps", "copy_fraction"),
    *("times_copy", "goal", "met", "speedup", "extra_bytes"),
    *("device", "driver", "torch", "triton", "numpy", "python", "commit", "date"),
)


def check(case: Case, rows: int, n: int, device: torch.device) -> None:
    """Compare the operation with the reference backend on a moderately sized input; raise SystemExit if they differ."""
    rows, n = min(rows, 3), min(n, CHECKED_N)
    ours, reference = case.build(rows, n, device), case.build(rows, n, device)
    got = [*ours.run(), *ours.state]
    with use_backend("reference"):
        wanted = [*reference.run(), *reference.state]
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        same = torch.allclose(a, b, rtol=case.rtol, atol=0.0) if case.rtol else _same_bits(a, b)
        if not same:
            raise SystemExit(f"{case.label}: output {number} of {rows} x {n} differs from the reference; nothing timed")


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
    case: Case, rows: int, n: int, device: torch.device, seconds: float, chosen: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of one case: the operation first, then its peers. `goal` and `met` are filled in by `judge`."""
    built = case.build(rows, n, device)
    extra = extra_memory(built.run, device)
    floor = case.floor(rows, n)
    copy = Copy(floor, device)
    own, copied = measure([built.run, copy.run], seconds, device)
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

    rows_out = [
        {**row(backend.choose(_name_for_backend(case.op), device), own), "extra_bytes": "" if extra is None else extra}
    ]
    del copy
    for name, function in peers(case, built, chosen):
        try:
            (times,) = measure([function], seconds, device, minimum=3)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            print(f"{case.label}: no compiled peer here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        rows_out.append({**row(name, times), "speedup": f"{times.median / own.median:.3g}"})
    return rows_out


def _name_for_backend(op: str) -> str:
    """Return the name by which `backend.choose` knows an operation of the report."""
    return {"index_coding": "encode_indices", "aggregate": "aggregate_codes", "end_to_end": "topk"}.get(op, op)


def judge(rows: list[dict[str, Any]], cases: Sequence[Case], device: torch.device) -> None:
    """Fill in `goal` and `met`: multiples of the copy, speed-up over eager, index coding against its top-k."""
    by_label = {case.label: case for case in cases}
    own = {(row["label"], row["rows"], row["n"]): float(row["median_ms"]) for row in rows if "speedup" not in row}
    for row in rows:
        case = by_label[row["label"]]
        if row["backend"] == "eager" and case.goal is not None:
            row["goal"], met = f"speedup>={EAGER_GOAL:g}", float(row["speedup"]) >= EAGER_GOAL
        elif "speedup" in row:
            continue
        elif case.goal is not None:
            bound = GOALS[case.goal, device.type]
            row["goal"], met = f"times_copy<={bound:.3g}", float(row["times_copy"]) <= bound
        elif (top := own.get((case.coding_of or "", row["rows"], row["n"]))) is not None:
            row["goal"] = f"median_ms<={CODING_GOAL:g}*{top:g}"
            met = float(row["median_ms"]) <= CODING_GOAL * top
        else:
            continue
        row["met"] = "yes" if met else "no"


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
    result.add_argument("--only", default="", help="only cases whose label holds this")
    result.add_argument("--n", type=numbers, help="elements a row, comma list; default: 25.6 M (cpu), 100 M (cuda)")
    result.add_argument("--rows", type=numbers, default=[1], help="rows, comma list; default: 1")
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
    sizes = [(rows, n) for n in options.n or [DEFAULT_N[device.type]] for rows in options.rows]
    for case in cases:
        check(case, *sizes[0], device)
    print(f"checked: {len(cases)} cases agree with the reference")
    where = provenance(device)
    results: list[dict[str, Any]] = []
    with torch.no_grad():
        for number, (rows, n) in enumerate(sizes):
            # Compilation takes half a minute a case, so it is done at the first size only.
            chosen = [peer for peer in options.peers if peer != "compiled" or number == 0]
            for case in cases:
                new = bench(case, rows, n, device, options.seconds, chosen)
                for row in new:
                    show(row)
                results += new
                gc.collect()
    judge(results, cases, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **where} for row in results)
    judged = [row for row in results if "met" in row]
    for row in judged:
        if row["met"] == "no":
            value = row.get("speedup") or f"{row['times_copy']} x copy, {row['median_ms']} ms"
            print(f"missed: {row['label']} ({row['backend']}): {row['goal']}, is {value}")
    print(f"{sum(row['met'] == 'yes' for row in judged)} of {len(judged)} goals met; {len(results)} rows in {out}")
