"""Draws the pictures of docs/kernels.md: `python -m benchmarks.pictures --out docs/images`.

`vertical-layout.png`: where the codes of a bucket lie, read from what `quantize` writes.
`topk-bracket.png`: what a sample's bracket makes of the magnitudes of a row, at a sparse and at a dense k.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsynsam.ops import quantize

BUCKET, BITS = 64, 4
EIGHTHS = ("#1b6ca8", "#59b0e3", "#2a7f62", "#8fc1a9", "#c8553d", "#f0a58f", "#d49b00", "#f2cf63")
N, SAMPLE = 4_000_000, 131_072


def places_of_codes() -> list[tuple[int, int]]:
    """Return (byte, first bit) of each value of a bucket: a value alone in its bucket changes one code."""
    places = []
    for value in range(BUCKET):
        row = torch.zeros(1, BUCKET)
        row[0, value] = 1.0
        codes = quantize(row, torch.zeros(1, dtype=torch.int64), bits=BITS, bucket=BUCKET, rounding="nearest").codes[0]
        byte = int(codes.nonzero().item())
        places.append((byte, 0 if codes[byte] < 1 << BITS else BITS))
    return places


def draw_layout() -> Figure:
    """Values of a bucket above, bytes of its codes below, an eighth of the values in a colour."""
    figure, (values, codes) = plt.subplots(2, 1, figsize=(10, 3.6), height_ratios=(1, 2))
    eighth = BUCKET // 8
    for value in range(BUCKET):
        _box(values, value, 0, EIGHTHS[value // eighth], str(value))
    for value, (byte, bit) in enumerate(places_of_codes()):
        _box(codes, 2 * byte, bit // BITS, EIGHTHS[value // eighth], str(value), width=2)
    values.set_title(
        f"The {BUCKET} values of a bucket: one call of Philox serves eight of them, one of each colour", fontsize=10
    )
    codes.set_title(f"Its {BUCKET * BITS // 8} bytes at {BITS} bits: low half below, high half above", fontsize=10)
    codes.set_xticks([2 * byte + 1 for byte in range(0, BUCKET // 2, 4)], [str(b) for b in range(0, BUCKET // 2, 4)])
    codes.set_xlabel("byte")
    for axes, height in ((values, 1), (codes, 2)):
        axes.set(xlim=(0, BUCKET), ylim=(0, height), yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    values.set_xticks([])
    figure.tight_layout()
    return figure


def _box(axes: Axes, x: float, y: float, colour: str, text: str, width: float = 1) -> None:
    axes.add_patch(plt.Rectangle((x, y), width, 1, facecolor=colour, edgecolor="white", linewidth=1))
    axes.text(x + width / 2, y + 0.5, text, ha="center", va="center", fontsize=6.5, color="black")


def bracket(magnitudes: torch.Tensor, k: int) -> tuple[float, float | None, float]:
    """Return lo, hi (None: there is none) and the true threshold, by the rule of csrc/cuda/topk_collect.cu."""
    n = magnitudes.numel()
    ordered = magnitudes.sort(descending=True).values
    sample = magnitudes[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:SAMPLE]]
    sample = sample.sort(descending=True).values
    rank = SAMPLE * k / n
    slack = 3 * math.sqrt(2 * rank * (1 - rank / SAMPLE)) + 8
    hi = float(sample[int(rank - slack)]) if 64 * k > n else None
    return float(sample[int(rank + slack)]), hi, float(ordered[k - 1])


def draw_bracket() -> Figure:
    """The upper part of the magnitudes of a normal row, at densities 0.01 and 0.1."""
    magnitudes = torch.randn(N, generator=torch.Generator().manual_seed(0)).abs()
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axes, density, left, right in ((panels[0], 0.01, 2.3, 3.4), (panels[1], 0.1, 1.5, 1.8)):
        lo, hi, threshold = bracket(magnitudes, int(density * N))
        top = right if hi is None else hi
        counts, edges = torch.histogram(magnitudes, 220, range=(left, right))
        axes.stairs(counts / counts.max(), edges, fill=True, color="#d9d9d9")
        axes.axvspan(lo, top, color="#59b0e3", alpha=0.45, linewidth=0, label="listed: 6 bytes each")
        if hi is not None:
            axes.axvspan(hi, right, color="#2a7f62", alpha=0.35, linewidth=0, label="sure: only counted")
        axes.axvline(threshold, color="#c8553d", linewidth=2, label="threshold, found among the listed")
        listed = ((magnitudes >= lo) & (magnitudes < (math.inf if hi is None else hi))).sum().item() / N
        passes = "one pass: zeroes what it lists" if hi is None else "two passes: the second emits"
        axes.set_title(f"density {density:g}: {listed:.2%} listed; {passes}", fontsize=10)
        axes.set(xlim=(left, right), yticks=[], xlabel="|a|")
        axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in (("vertical-layout", draw_layout), ("topk-bracket", draw_bracket)):
        figure = draw()
        figure.savefig(out / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
        print(out / f"{name}.png")


if __name__ == "__main__":
    main()
