"""The bytes that each GPU kernel moves through device memory, beside what it must: `python -m benchmarks.bytes`.

Counted in the kernels' own loads and stores, with cold caches: what a second access finds in a cache is not charged
again, nor is what is less than a hundredth of a byte an element (flags, partial sums, launch arguments). Formulas are
data: the table, the floors of the benchmarks, and the tests all evaluate these strings.

    n   elements of a row             u   bytes of an element of the update or gradient (4, or 2 for half precision)
    k   indices or values kept        d   k / n
    b   bits of a code                B   elements of a bucket
    C   payloads of a sum             l   low bits of an index, each
    h   bytes of the high vector, an index: about (1 + n / (k * 2**l)) / 8
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedsynsam.ops import index_words


@dataclass(frozen=True)
class Sizes:
    """What the formulas depend on; the values are those of the table's figures."""

    n: int = 100_000_000
    k: int = 1_000_000
    u: int = 4
    b: int = 4
    B: int = 512
    C: int = 32

    def value(self, formula: str) -> float:
        """Return what a formula of this module comes to."""
        n, k = self.n, max(1, self.k)
        low = max(0, (n // k).bit_length() - 1)
        names = {"n": n, "k": k, "u": self.u, "b": self.b, "B": self.B, "C": self.C, "d": self.k / max(1, n)}
        names |= {"l": low, "h": 4 * index_words(n, k) / k - low / 8, "ceil": math.ceil}
        return float(eval(formula, {"__builtins__": {}}, names))  # our own strings only


# Bytes an element that any implementation has to move; an index, for the coding of indices.
FLOORS = {
    "topk": "u + 8",
    "chunk_topk": "u + 8",
    "encode_indices": "4 + l/8 + h",
    "decode_indices": "4 + l/8 + h",
    "quantize": "u + b/8 + 4/B",
    "quantize + residual": "u + 8 + b/8 + 4/B",
    "dequantize": "4 + b/8 + 4/B",
    "aggregate_codes": "C*(b/8 + 4/B) + 4",
    "aggregate_sparse": "8*C*d + 4",
    "sam_norm": "u",
    "sam_perturb": "2*u + 8",
    "sam_perturb mixed": "4*u + 8",
    "sam_step": "u + 8",
    "sam_step + momentum": "u + 16",
}


class Kernel(NamedTuple):
    """One launch: its name in the source, and the bytes that it moves an element (an index)."""

    name: str
    moves: str


@dataclass(frozen=True)
class Entry:
    """The launches of one call, in order."""

    floor: str  # a key of FLOORS
    backend: str
    source: str  # a path, or a pattern of paths
    launches: tuple[Kernel, ...]
    sizes: Sizes = Sizes()
    when: str = ""

    @property
    def op(self) -> str:
        return self.floor.split(" ")[0]

    def moved(self) -> float:
        """Return the bytes an element (an index) at the entry's sizes."""
        return sum(self.sizes.value(launch.moves) for launch in self.launches)

    def least(self) -> float:
        """Return the floor at the entry's sizes."""
        return self.sizes.value(FLOORS[self.floor])


def _sam(backend: str, source: str) -> tuple[Entry, ...]:
    def entry(floor: str, *launches: tuple[str, str]) -> Entry:
        return Entry(floor, backend, source, tuple(Kernel(*launch) for launch in launches))

    return (
        entry("sam_norm", ("chunk_squares", "u"), ("finish_norm", "0")),
        entry("sam_perturb", ("chunk_squares", "u"), ("perturb_chunk", "u + 8")),
        entry("sam_perturb mixed", ("chunk_squares", "2*u"), ("perturb_chunk", "2*u + 8")),
        entry("sam_step", ("step_chunk", "u + 8")),
        entry("sam_step + momentum", ("step_chunk", "u + 16")),
    )


def _coding(backend: str, source: str) -> tuple[Entry, ...]:
    encode = (Kernel("(memset)", "h"), Kernel("encode_ranks", "4 + l/8 + h"))
    decode = (Kernel("count_ones", "h"), Kernel("select_ones", "4 + l/8 + h"), Kernel("fill_illegal", "0"))
    entries = [Entry("encode_indices", backend, source, encode), Entry("decode_indices", backend, source, decode)]
    if backend == "cuda":  # one memset over all rows, low vectors included
        whole = (Kernel("(memset)", "l/8 + h"), encode[1])
        entries[0] = Entry("encode_indices", backend, source, encode, when="one row")
        entries.insert(1, Entry("encode_indices", backend, source, whole, when="several rows"))
    return tuple(entries)


TOPK = "csrc/cuda/topk*.cu"
DENSE = Sizes(k=10_000_000)
# What collect lists, in elements: a sample's bracket is wider than what is kept, and a little wider than its goal.
SPARSE_LISTED, DENSE_LISTED = "1.15*d", "0.015"


def _topk(listed: str, emit: str, sizes: Sizes, when: str) -> Entry:
    """Six bytes for each that is listed, written once and read in every round, in count and in emit."""
    launches = [("estimate", "0"), ("collect", f"u + 8 + 6*{listed}"), ("put_back", "0")]
    launches += [(f"find<{digit}>", f"4*{listed}") for digit in range(3)]
    launches += [("count", f"4*{listed}"), ("emit", emit), ("undo_rows", "0")]
    return Entry(
        "topk", "cuda", TOPK, (Kernel("(memset)", "0"), *(Kernel(*launch) for launch in launches)), sizes, when
    )


QUANTIZE, AGGREGATE = "csrc/cuda/quantize.cu", "csrc/cuda/aggregate.cu"
LARGE = Sizes(B=4096)
ENTRIES: tuple[Entry, ...] = (
    # A loser that is put back takes a sector of 32 bytes; winners that are zeroed share theirs, of eight elements.
    _topk(SPARSE_LISTED, "6*1.15*d + 8*d + 32*0.15*d", Sizes(), "d ≤ 1/64"),
    _topk(DENSE_LISTED, "4 + 8*d + 4*(1 - (1 - d)**8)", DENSE, "d > 1/64 (figures: d = 0.1)"),
    Entry(
        "topk",
        "cuda",
        TOPK,
        tuple(
            Kernel(*launch)
            for launch in (
                ("(memset)", "0"),
                ("estimate", "0"),
                ("collect", "u + 8"),
                ("put_back", "0"),
                ("find<0>", "4"),
                ("find<1>", "4"),
                ("find<2>", "4"),
                ("count", "4"),
                ("emit", "4 + 8*d + 4*(1 - (1 - d)**8)"),
                ("undo_rows", "0"),
            )
        ),
        when="estimate failed",
    ),
    Entry(
        "topk",
        "cuda",
        TOPK,
        (Kernel("(memset)", "0"), Kernel("emit_tile", "u + 8 + 8*d"), Kernel("undo_rows", "0")),
        when="n ≤ 4096",
    ),
    Entry(
        "chunk_topk",
        "cuda",
        TOPK,
        (Kernel("(memset)", "0"), Kernel("emit_tile", "u + 8 + 8*d"), Kernel("undo_rows", "0")),
    ),
    Entry(
        "chunk_topk",
        "triton",
        "kernels/triton/topk.py",
        (Kernel("(memset)", "0"), Kernel("select_chunk", "u + 8 + 8*d"), Kernel("rewrite_flagged", "0")),
    ),
    *_coding("cuda", "csrc/cuda/index_coding.cu"),
    *_coding("triton", "kernels/triton/index_coding.py"),
    *(
        Entry(
            f"quantize{given}",
            "cuda",
            QUANTIZE,
            (Kernel("(memset)", "0"), *kernels, Kernel("retract_rows", "0")),
            sizes,
            when,
        )
        for given, kernels, sizes, when in (
            ("", (Kernel("quantize_groups", "u + b/8 + 4/B"),), Sizes(), "B ≤ 1024"),
            (" + residual", (Kernel("quantize_groups", "u + 8 + b/8 + 4/B"),), Sizes(), "B ≤ 1024"),
            ("", (Kernel("scale_block", "u + 4/B"), Kernel("quantize_counters", "u + b/8 + 4/B")), LARGE, "B > 1024"),
            (
                " + residual",
                (Kernel("scale_block", "u + 4 + 4/B"), Kernel("quantize_counters", "u + 8 + b/8 + 4/B")),
                LARGE,
                "B > 1024",
            ),
        )
    ),
    *(
        Entry(
            f"quantize{given}",
            "triton",
            "kernels/triton/quantize.py",
            (Kernel("(memset)", "0"), Kernel("quantize_buckets", moves), Kernel("rewrite_flagged", "0")),
            when="B ≤ 4096",
        )
        for given, moves in (("", "u + b/8 + 4/B"), (" + residual", "u + 8 + b/8 + 4/B"))
    ),
    Entry("dequantize", "cuda", AGGREGATE, (Kernel("dequantize_counters", "4 + b/8 + 4/B"),)),
    Entry("dequantize", "triton", "kernels/triton/quantize.py", (Kernel("dequantize_buckets", "4 + b/8 + 4/B"),)),
    Entry(
        "aggregate_codes",
        "cuda",
        AGGREGATE,
        (Kernel("add_codes", "C*(b/8 + 4/B) + 4 + 8*(ceil(C/32) - 1)"),),
        when="a launch for every 32 payloads",
    ),
    Entry(
        "aggregate_sparse",
        "cuda",
        AGGREGATE,
        (Kernel("add_sparse", "8*C*d + 4 + 8*(ceil(C/32) - 1)"),),
        when="a launch for every 32 payloads",
    ),
    Entry(
        "aggregate_codes",
        "triton",
        "kernels/triton/aggregate.py",
        (Kernel("sum_codes", "C*(b/8 + 4/B) + 4 + 8*(ceil(C/32) - 1)"),),
        when="a launch for every 32 payloads",
    ),
    Entry(
        "aggregate_sparse",
        "triton",
        "kernels/triton/aggregate.py",
        (Kernel("find_starts", "0"), Kernel("sum_sparse", "8*C*d + 4 + 8*(ceil(C/32) - 1)")),
        when="two launches for every 32 payloads; sums in the caches",
    ),
    *_sam("cuda", "csrc/cuda/sam.cu"),
    *_sam("triton", "kernels/triton/sam.py"),
)


def floor(key: str, rows: int, sizes: Sizes) -> float:
    """Return the bytes that any implementation has to move for `rows` rows."""
    per_index = key in ("encode_indices", "decode_indices")
    return rows * (sizes.k if per_index else sizes.n) * sizes.value(FLOORS[key])


def table(entries: Sequence[Entry] = ENTRIES) -> str:
    """Return the table in Markdown; equal entries of several backends share a line."""
    lines = [
        "| operation | backend | launches, and the bytes each moves | moved | floor | moved / floor |",
        "|---|---|---|---|---|---|",
    ]
    backends: dict[tuple[object, ...], list[str]] = {}
    for entry in entries:
        backends.setdefault(_line(entry), []).append(entry.backend)
    for entry in {_line(entry): entry for entry in entries}.values():
        launches = ", ".join(
            f"`{kernel.name}` {_pretty(kernel.moves)}" if kernel.name[0] != "(" else f"memset {_pretty(kernel.moves)}"
            for kernel in entry.launches
        )
        name = f"`{entry.op}`{entry.floor.removeprefix(entry.op)}{f', {entry.when}' if entry.when else ''}"
        ratio = entry.moved() / entry.least()
        lines.append(
            f"| {name} | {', '.join(backends[_line(entry)])} | {launches} | {entry.moved():.2f} | {entry.least():.2f} "
            f"| {ratio:.2f} |"
        )
    return "\n".join(lines)


def _line(entry: Entry) -> tuple[object, ...]:
    """Return what entries of one line have in common."""
    return entry.floor, entry.launches, entry.sizes, entry.when


def _pretty(formula: str) -> str:
    return (
        "≈ 0"
        if formula == "0"
        else formula.replace("**8", "⁸").replace("*", "·").replace("ceil(C/32)", "⌈C/32⌉").replace(" - ", " − ")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.bytes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    print(table())


if __name__ == "__main__":
    main()
