"""Paired comparisons over the seeds that both have."""

from __future__ import annotations

import csv

import pytest

from benchmarks import pairs

ROWS = """algorithm,compressor,seed,final_accuracy,sharpness
ours,none,0,0.80,2.0
ours,none,1,0.83,3.0
ours,none,2,0.90,
theirs,none,0,0.79,5.0
theirs,none,1,0.81,7.0
ours,topk:0.01,0,0.70,2.5
ours,topk:0.01,1,0.71,2.5
"""


def test_differences_of_shared_seeds(tmp_path):
    pytest.importorskip("scipy", reason="the paired t-test needs SciPy")
    file = tmp_path / "results.csv"
    file.write_text(ROWS)
    pairs.main(["ours", str(file), "--out", str(tmp_path / "pairs.csv")])
    with (tmp_path / "pairs.csv").open(newline="") as rows:
        against, compressed = csv.DictReader(rows)
    assert (against["against"], against["under"], against["seeds"]) == ("theirs", "none", "2")
    assert float(against["accuracy"]) == pytest.approx(1.5)
    assert float(against["accuracy_deviation"]) == pytest.approx(0.707, abs=1e-3)
    assert (against["accuracy_above"], against["sharpness_above"]) == ("2", "0")
    assert float(against["accuracy_p"]) == pytest.approx(0.2, abs=0.01)  # t = 3 with one degree of freedom: 0.2048
    assert (compressed["algorithm"], compressed["compressor"], compressed["under"]) == ("ours", "topk:0.01", "none")
    assert float(compressed["accuracy"]) == pytest.approx(-11)
    assert float(compressed["sharpness"]) == pytest.approx(0)


def test_a_cell_that_is_there_twice_is_refused(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(ROWS)
    with pytest.raises(SystemExit, match="ours, none, seed 0 is there twice"):
        pairs.main(["ours", str(file), str(file), "--out", str(tmp_path / "pairs.csv")])
