"""The benchmark of growth: residuals take what their law says, in memory and in files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("store", ["host", "disk"])
def test_residuals_take_what_the_law_says(store: str) -> None:
    words = ["--one", "--clients", "200", "--stores", store, "--rounds", "1", "--dataset", "fashion-mnist-subset"]
    command = [sys.executable, "-m", "benchmarks.growth", *words]
    row = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert (row["clients"], row["store"], row["cohort"], row["rounds"]) == (200, store, 10, 1)
    assert row["law_mb"] == pytest.approx(4e-6 * 37_610 * 200)
    assert row["files_mb"] == pytest.approx(row["law_mb"], rel=0.01)
    if store == "host":
        assert row["residuals_mb"] == pytest.approx(row["law_mb"], rel=0.1)
    else:
        assert row["residuals_mb"] < 0.2 * row["law_mb"]
    assert 0 < row["fastest_seconds"] <= row["round_seconds"]
