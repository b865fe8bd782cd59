"""Where a round's time goes: each moment of it is in one part."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest

from benchmarks import anatomy


def event(name, seconds, parent=None):
    return SimpleNamespace(name=name, self_cpu_time_total=1e6 * seconds, cpu_parent=parent)


def test_a_moment_belongs_to_the_nearest_named_work_or_else_to_its_operator():
    step = event("perturbation and step", 0.5)
    inner = event("fedsynsam::sam_step", 1.0, step)
    events = [
        step,
        inner,
        event("aten::mm", 2.0, inner),
        event("aten::mkldnn_convolution", 3.0),
        event("aten::add", 1.0),
    ]
    parts = anatomy.parts_of(events, wall=9.0)
    assert set(parts) == set(anatomy.PARTS)
    assert parts["perturbation and step"] == pytest.approx(3.5)
    assert parts["convolutions"] == pytest.approx(3.0)
    assert parts["matrix products"] == 0.0
    assert parts["other operators"] == pytest.approx(1.0)
    assert parts["Python"] == pytest.approx(1.5)


def test_short_rounds_are_taken_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(anatomy, "COHORT", 2)
    monkeypatch.setattr(anatomy, "TIMED", 2)
    monkeypatch.setattr(anatomy, "TURNS", 2)
    monkeypatch.setattr(anatomy, "CASES", dict(list(anatomy.CASES.items())[:4]))
    out = tmp_path / "anatomy.csv"
    anatomy.main(["--out", str(out)])
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for case in anatomy.CASES:
        shares = {row["part"]: float(row["share"]) for row in rows if row["case"] == case}
        assert sum(shares.values()) == pytest.approx(1.0, abs=0.02)
        assert shares["convolutions" if case == "eager loop, FedAvg" else "local steps by our kernels"] > 0.1
        assert shares["gathering batches"] > 0
        assert (shares["perturbation and step"] > 0) == (case == "eager loop, FedAvg")
        assert (shares["copies of the model"] > 0) == (case == "eager loop, FedAvg")
        assert (shares["compression, bytes, sum"] > 0) == (case != "eager loop, FedAvg")
    assert out.with_suffix(".png").stat().st_size > 5_000
