"""No payload makes a receiver allocate more than three times its model."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import memory
from fedsynsam.ops import backend

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "memory.csv"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
@pytest.mark.skipif(backend.why_not("cpu") is not None, reason="the bound is that of the C++ extension")
def test_hostile_bytes_stay_within_the_bound() -> None:
    rows = memory.run(2_000_000)
    assert {str(row["case"]) for row in rows if not row["within"]} == set()
    outcomes = {str(row["outcome"]).split(":")[0] for row in rows}
    assert outcomes == {"legal", "refused"}
    assert sum("corpus" in str(row["case"]) for row in rows) >= len(list(memory.CORPUS.iterdir())) - 1


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_the_peak_is_seen_although_it_is_gone() -> None:
    peak, outcome = memory.peak_of(lambda: f"{float(torch.ones(10_000_000).sum()):.0f}")
    assert outcome == "10000000"
    assert 39e6 < peak < 60e6


def test_the_committed_results_hold_what_the_page_says() -> None:
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["within"] == "True" for row in rows)
    one = max(float(row["times"]) for row in rows if row["case"].endswith("one tensor"))
    assert f"{len(rows)} measurements" in (page := (ROOT / "docs" / "threat-model.md").read_text())
    assert f"{one:.2f} times" in page
