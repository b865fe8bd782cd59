"""Runs side by side: rows, means and shares are those of their metrics."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from benchmarks import directions
from fedsynsam.fl.metrics import RoundMetrics


def make_run(folder: Path, seed: int, cosine: float) -> None:
    folder.mkdir(parents=True)
    config = {"algorithm": "fedsynsam", "compressor": "topk:0.01", "seed": seed, "rounds": 60}
    config["versions"] = {"torch": "2", "numpy": "2", "python": "3"}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        RoundMetrics(
            round=number, train_loss=1.0, uplink_bytes=1, downlink_bytes=1, seconds=2.0, test_accuracy=0.5,
            cosines={"synthetic": cosine if number >= 50 else 0.1, "real": 0.9} if number % 10 == 0 else None,
            synthetic_seconds=5.0 if number == 26 else None, synthetic_loss=0.5 if number == 26 else None,
        )
        for number in range(1, 61)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(row.to_json() + "\n" for row in rows))
    (folder / "summary.json").write_text(
        json.dumps({"final_accuracy": 0.7, "last_accuracy": 0.7, "uplink_bytes": 60, "uplink_ratio": 1.0})
    )


def test_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "old" / "a", 1, 0.8)
    make_run(tmp_path / "new" / "a", 1, 0.85)
    make_run(tmp_path / "new" / "b", 2, 0.9)
    groups = [f"before = after={tmp_path / 'old'}", f"after={tmp_path / 'new'}"]
    monkeypatch.setattr(sys, "argv", ["x", *groups, "--out", str(tmp_path / "out")])
    directions.main()
    rows = list(csv.DictReader((tmp_path / "out" / "runs.csv").open()))
    assert [(row["runs"], row["seed"], row["synthetic"]) for row in rows] == [
        ("before = after", "1", "0.8000"), ("after", "1", "0.8500"), ("after", "2", "0.9000")
    ]  # fmt: skip
    assert {(row["learning_seconds"], row["learning_share"], row["final_accuracy"]) for row in rows} == {
        ("5.0", "0.042", "0.7000")
    }
    points = list(csv.DictReader((tmp_path / "out" / "cosines.csv").open()))
    assert len(points) == 18
    assert [row["learning"] for row in points[:3]] == ["0.0", "0.0", "5.0"]
    assert (tmp_path / "out" / "cosines.png").read_bytes().startswith(b"\x89PNG")


def test_of_one_group_every_estimate_is_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 1, 0.8)
    runs = directions.find_runs(tmp_path)
    [axis] = directions.draw({"one": runs}).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert drawn["synthetic"] == [0.1] * 4 + [0.8] * 2
    assert {"drift", "local", "previous"} < drawn.keys()
    [axis] = directions.draw({"one": runs, "other": runs}).axes
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["one", "other", "as many real images"]
    assert directions.totals("one", runs[0])["drift"] == ""


def test_a_run_without_a_set_has_no_lowest_cosine(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 1, 0.8)
    [run] = directions.find_runs(tmp_path)
    assert directions.totals("one", run)["lowest"] == "0.8000"
    for row in run.rounds:
        (row.cosines or {}).pop("synthetic", None)
    found = directions.totals("one", run)
    assert (found["lowest"], found["synthetic"], found["real"]) == ("", "", "0.9000")


def test_a_group_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "folder", "--out", "out"])
    with pytest.raises(SystemExit):
        directions.main()
    assert "give NAME=FOLDER" in capsys.readouterr().err
