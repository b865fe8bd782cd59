"""Measures what payloads weigh: `python -m benchmarks.sizes --out FILE.csv`.

For each spec: bytes of `Payload.encode()`, container included, of one tensor of n normal values; a value that was sent
takes `bytes_per_value`. For top-k, a kept index takes `index_bits`; `entropy_bits` = log2 C(n, k) / k is the least that
any code can need.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

import fedsynsam as fs
from fedsynsam.wire import Payload

from .provenance import provenance
from .rows import write_rows

SPECS = (
    "none", "topk:0.001", "topk:0.01", "topk:0.1", "chunktopk:0.01", "quantize:8", "quantize:4", "quantize:2",
    "quantize:1", "topk:0.01+quantize:8", "topk:0.01+quantize:4", "topk:0.01+quantize:2", "topk:0.1+quantize:4",
)  # fmt: skip


def weigh(spec: str, n: int) -> dict[str, object]:
    """Return the row of one spec."""
    update = {"w": torch.randn(n, generator=torch.Generator().manual_seed(0))}
    compressor = fs.compressor(spec)
    payload, _ = compressor.compress(update, compressor.init(update), seed=0)
    blob = payload.encode()
    info, k = Payload.inspect(blob), payload.num_sent
    row: dict[str, object] = {"spec": spec, "n": n, "sent": k, "wire_bytes": len(blob)}
    row |= {"bytes_per_value": f"{len(blob) / k:.4f}", "times_smaller": f"{4 * n / len(blob):.2f}"}
    streams = [part for part in info.sections if part.name == "indices"]
    if streams:
        bits = 8 * streams[0].nbytes / k
        entropy = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) / k
        row |= {"index_bits": f"{bits:.4f}", "entropy_bits": f"{entropy:.4f}", "over_entropy": f"{bits / entropy:.4f}"}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=1_000_000, help="values of the update")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    rows = [weigh(spec, options.n) for spec in SPECS]
    fields = [*rows[1], *(source := provenance(torch.device("cpu")))]
    write_rows([{**row, **source} for row in rows], fields, options.out)
    for row in rows:
        print(*(f"{name}={value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
