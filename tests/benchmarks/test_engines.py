"""The benchmark of the engines: every engine is timed on the same work, and other models' rows are kept."""

from __future__ import annotations

import csv

from benchmarks import engines
from benchmarks.rows import write_rows


def test_rows_picture_and_goals(tmp_path, monkeypatch):
    out = tmp_path / "engines.csv"
    monkeypatch.setitem(engines.GOALS, ("cpu", "cnn"), 1000.0)
    short = ["--cohorts", "2", "--timed", "1", "--local-steps", "1", "--threads", "1", "--device", "cpu"]
    engines.main(["--out", str(out), *short])
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["engine"] for row in rows] == ["eager", "sequential", "batched", "unfold"]
    assert all(float(row["round_seconds"]) > 0 for row in rows)
    assert rows[0]["times_eager"] == "1.000"
    assert [row["met"] for row in rows].count("no") == 1, "the goal is judged on the fastest engine alone"
    assert out.with_suffix(".png").stat().st_size > 5_000
    kept = [{**row, "model": "resnet18"} for row in rows]
    write_rows(kept, list(kept[0]), out)
    engines.main(["--out", str(out), "--engines", "batched", *short])
    with out.open(newline="", encoding="utf-8") as file:
        found = [(row["model"], row["engine"]) for row in csv.DictReader(file)]
    assert found == [("resnet18", row["engine"]) for row in rows] + [("cnn", "eager"), ("cnn", "batched")]
