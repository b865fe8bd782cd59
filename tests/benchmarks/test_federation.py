"""The benchmark of what federation costs: every case runs, and the bare passes are those of the round."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from benchmarks import federation, workload
from benchmarks.peers.job import Job


def test_every_case_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(federation, "WARMUP", 2)
    out = tmp_path / "federation.csv"
    federation.main(["--out", str(out), "--cohort", "2", "--timed", "2"])
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["algorithm"] for row in rows] == [case.algorithm for case in federation.CASES]
    assert [row["gradients"] for row in rows] == ["1.00", "1.00", "2.00", "1.05", "2.05", "2.00"]
    for row in rows:
        assert float(row["ratio"]) > 0.3
        assert float(row["to_pytorch"]) > 0
        assert row["met"] in (("",) if row["goal"] == "" else ("yes", "no"))
    assert torch.get_num_threads() >= 1


def test_presets_take_the_passes_that_the_documentation_says(tmp_path, monkeypatch):
    monkeypatch.setattr(federation, "WARMUP", 2)
    monkeypatch.setattr(federation.workload, "LOCAL_STEPS", 2)
    cases = [
        case for case in federation.PRESET_CASES if case.algorithm in ("scaffold", "fedsmoo", "dynafed", "fedlesam")
    ]
    monkeypatch.setattr(federation, "PRESET_CASES", cases)
    federation.main(["--presets", "--out", str(tmp_path / "presets.csv"), "--cohort", "2", "--timed", "2"])
    with (tmp_path / "presets.csv").open(newline="", encoding="utf-8") as file:
        found = {row["algorithm"]: row["gradients"] for row in csv.DictReader(file)}
    assert found == {"scaffold": "1.00", "fedsmoo": "2.00", "fedlesam": "1.00", "dynafed": "6.00"}  # 20 of the server


def test_bare_passes_are_one_for_each_local_step(monkeypatch):
    calls = []
    monkeypatch.setattr(federation.Worker, "__init__", lambda self, *_: setattr(self, "single", self))
    monkeypatch.setattr(federation.Worker, "backward", lambda _, batch: calls.append(len(batch[1])), raising=False)
    job = Job(3, 1, 1, 1, Path())
    bare = federation.Bare(job)
    bare.seconds(2)
    bare.close()
    sizes = [min(workload.BATCH_SIZE, len(workload.parts()[client])) for client in job.clients(2)]
    assert len(calls) == 3 * workload.LOCAL_STEPS
    assert sum(calls) == workload.LOCAL_STEPS * sum(sizes)
