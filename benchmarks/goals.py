"""The goals as data, and which of a benchmark's rows meet theirs."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from .case import Case

Row = MutableMapping[str, Any]


class Goal(NamedTuple):
    """What one operation must reach on one device, in bytes and in shares of a measured copy's bandwidth.

    On a GPU the operation must move `bytes_per_floor` times its floor at `share` of the copy's bandwidth: a global
    top-k is allowed 16 bytes an element where its floor is 12.
    """

    share: float
    bytes_per_floor: float = 1.0

    @property
    def times_copy(self) -> float:
        """The largest time allowed, in multiples of a copy of the floor bytes."""
        return self.bytes_per_floor / self.share


# By (kind of operation, device type): n = 100 M and 64 x 1 M on an H100; n = 25.6 M on two CPU cores.
GOALS: dict[tuple[str, str], Goal] = {
    ("chunk_topk", "cpu"): Goal(1 / 1.5),
    ("chunk_topk", "cuda"): Goal(0.90),
    ("topk", "cpu"): Goal(1 / 2.0),
    ("topk", "cuda"): Goal(0.90, bytes_per_floor=16 / 12),
    ("quantize", "cpu"): Goal(1 / 2.0),
    ("quantize", "cuda"): Goal(0.88),
    ("aggregate", "cpu"): Goal(1 / 2.0),
    ("aggregate", "cuda"): Goal(0.85),
    ("sam", "cpu"): Goal(1 / 1.3),
    ("sam", "cuda"): Goal(0.90),
}
EAGER_GOAL = 8.0  # times faster than the eager PyTorch pipeline of the same job
CODING_GOAL = 0.10  # of the time of the top-k whose indices are coded


def judge(rows: Sequence[Row], cases: Sequence[Case], device_type: str) -> None:
    """Fill in `goal` and `met`: multiples of the copy, speed-up over eager, index coding against its top-k.

    A row without a goal, and index coding whose top-k was not timed on a kernel, are left as they are.
    """
    by_label = {case.label: case for case in cases}
    tops = _fastest_kernels(rows)
    for row in rows:
        case = by_label[row["label"]]
        if row["backend"] == "eager" and case.goal is not None:
            row["goal"], met = f"speedup>={EAGER_GOAL:g}", float(row["speedup"]) >= EAGER_GOAL
        elif row.get("speedup"):
            continue
        elif case.goal is not None:
            bound = GOALS[case.goal, device_type].times_copy
            row["goal"], met = f"times_copy<={bound:.3g}", float(row["times_copy"]) <= bound
        elif (top := tops.get((case.coding_of or "", row["rows"], row["n"]))) is not None:
            row["goal"], met = f"median_ms<={CODING_GOAL:g}*{top:g}", float(row["median_ms"]) <= CODING_GOAL * top
        else:
            continue
        row["met"] = "yes" if met else "no"


def _fastest_kernels(rows: Sequence[Row]) -> dict[tuple[str, Any, Any], float]:
    """Return the milliseconds of each operation's fastest kernel; the reference is none, and would be easy to beat."""
    fastest: dict[tuple[str, Any, Any], float] = {}
    for row in rows:
        if not row.get("speedup") and row["backend"] != "reference":
            key, taken = (row["label"], row["rows"], row["n"]), float(row["median_ms"])
            fastest[key] = min(taken, fastest.get(key, taken))
    return fastest


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each goal missed, and one that counts."""
    judged = [row for row in rows if row.get("met")]
    lines = []
    for row in judged:
        if row["met"] == "no":
            value = row.get("speedup") or f"{row['times_copy']} x copy, {row['median_ms']} ms"
            size = f"{row['rows']} x {row['n']}"
            lines.append(f"missed: {row['label']} ({row['backend']}, {size}): {row['goal']}, is {value}")
    return [*lines, f"{len(judged) - len(lines)} of {len(judged)} goals met"]
