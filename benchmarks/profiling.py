"""What the kernels move through device memory, by hardware counters: `python -m benchmarks.profiling --out FILE.csv`.

Runs one call of each headline case under Nsight Compute (`ncu`) and writes a row for each kernel it launched and one,
`(all)`, for the call: bytes read and written, nanoseconds, and the bandwidth that they make. ncu empties the caches
before each kernel, so that a pass which would find the previous one's data in L2 is charged for it.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedsynsam import use_backend

from .case import Case
from .cases import CASES
from .provenance import provenance
from .rows import write_rows
from .run import backends_of, numbers, words

HEADLINES = (
    "topk 0.01 + residual", "chunk_topk 0.01 + residual", "encode indices 0.01", "decode indices 0.01",
    "quantize 4 bit", "quantize 4 bit + residual", "dequantize 4 bit", "aggregate 32 x 4 bit",
    "aggregate 32 x sparse 0.01", "sam_perturb", "sam_step",
)  # fmt: skip
READ, WRITTEN, DURATION = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
SHARE = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
FIELDS = (
    *("label", "backend", "rows", "n", "kernel", "bytes_read", "bytes_written", "duration_ns", "gbps", "peak_percent"),
    *("floor_bytes", "times_floor", "device", "driver", "cuda", "torch", "triton", "commit", "date"),
)


class Measured(NamedTuple):
    """What ncu says about one launch."""

    kernel: str
    read: float
    written: float
    nanoseconds: float
    peak_percent: float


def command(case: Case, backend: str, rows: int, n: int) -> list[str]:
    """Return the command that profiles one call."""
    ncu = ["ncu", "--profile-from-start", "off", "--csv", "--page", "raw", "--print-units", "base"]
    ncu += [
        "--clock-control",
        "none",
        "--cache-control",
        "all",
        "--metrics",
        ",".join((READ, WRITTEN, DURATION, SHARE)),
    ]
    return [*ncu, sys.executable, "-m", "benchmarks.profiling", "--call", case.label, "--backend", backend,
            "--rows", str(rows), "--n", str(n)]  # fmt: skip


def parse(text: str) -> list[Measured]:
    """Return the launches in the output of `ncu --csv --page raw`, which is preceded by lines of other programs."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith('"ID"')]
    if not starts:
        return []
    found = []
    for row in csv.DictReader(io.StringIO("\n".join(lines[starts[0] :]))):
        if not (row.get("ID") or "").isdigit():  # the line of units, or what a program printed
            continue
        numbers = [float(row[name].replace(",", "")) for name in (READ, WRITTEN, DURATION, SHARE)]
        found.append(Measured(row["Kernel Name"], *numbers))
    return found


def table(case: Case, backend: str, rows: int, n: int, launches: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return the rows of one call: a row for each kernel, and the sum."""
    read, written, taken = (sum(launch[i] for launch in launches) for i in (1, 2, 3))
    average = sum(launch.peak_percent * launch.nanoseconds for launch in launches) / taken if taken else 0.0
    floor = case.floor(rows, n)
    return [
        {
            "label": case.label,
            "backend": backend,
            "rows": rows,
            "n": n,
            "kernel": launch.kernel,
            "bytes_read": round(launch.read),
            "bytes_written": round(launch.written),
            "duration_ns": round(launch.nanoseconds),
            "gbps": f"{(launch.read + launch.written) / max(launch.nanoseconds, 1):.1f}",
            "peak_percent": f"{launch.peak_percent:.1f}",
            "floor_bytes": round(floor),
            "times_floor": f"{(launch.read + launch.written) / floor:.3f}",
        }
        for launch in [*launches, Measured("(all)", read, written, taken, average)]
    ]


def call(case: Case, backend: str, rows: int, n: int) -> None:
    """Make one call that ncu sees, after one that it does not."""
    built = case.build(rows, n, torch.device("cuda"))
    with use_backend(backend), torch.no_grad():
        built.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        built.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile the headline cases; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--backend", type=words(("cuda", "triton")), default=["cuda"], help="of cuda, triton")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--n", type=lambda text: numbers(text)[0], default=100_000_000)
    parser.add_argument("--seconds", type=float, default=90.0, help="no case is begun after this")
    parser.add_argument("--call", metavar="LABEL", help="make one call of one case, for ncu to see")
    options = parser.parse_args(arguments)
    by_label = {case.label: case for case in CASES}
    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA device: nothing to profile", file=sys.stderr)
        return 2
    if options.call is not None:
        call(by_label[options.call], options.backend[0], options.rows, options.n)
        return 0
    if shutil.which("ncu") is None:
        print("ncu (Nsight Compute) is not on PATH: nothing profiled", file=sys.stderr)
        return 2
    if options.out is None:
        parser.error("--out is needed")
    return profile([by_label[label] for label in HEADLINES], options)


def profile(cases: Sequence[Case], options: argparse.Namespace) -> int:
    """Run ncu on each case and backend, writing the file anew after each; return the exit code."""
    device, begun = torch.device("cuda"), time.monotonic()
    where, results, failed = provenance(device), [], 0
    for case in cases:
        for backend in backends_of(case, device, options.backend):
            if time.monotonic() - begun > options.seconds:
                print(f"{case.label} ({backend}): left out, the time is up", file=sys.stderr)
                continue
            done = subprocess.run(
                command(case, backend, options.rows, options.n), check=False, capture_output=True, text=True
            )
            launches = parse(done.stdout)
            if done.returncode != 0 or not launches:
                print(f"{case.label} ({backend}): ncu failed:\n{(done.stdout + done.stderr)[-2000:]}", file=sys.stderr)
                failed += 1
                if not results:  # most likely the counters may not be read here, and no other case will fare better
                    return 1
                continue
            rows = table(case, backend, options.rows, options.n, launches)
            results += [{**row, **where} for row in rows]
            write_rows(results, FIELDS, options.out)
            total = rows[-1]
            print(f"{case.label:<32}{backend:<8}{len(launches):>3} kernels {total['gbps']:>8} GB/s "
                  f"{total['times_floor']:>7} x floor", flush=True)  # fmt: skip
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
