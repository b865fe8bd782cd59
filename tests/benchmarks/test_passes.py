"""The benchmark of bare passes: every way is measured by every kind of workers."""

from __future__ import annotations

import csv

import pytest
import torch

from benchmarks import passes


def check_rows(tmp_path, *ways):
    out = tmp_path / "passes.csv"
    passes.main(["--out", str(out), "--seconds", "0.02", "--turns", "1"])
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["workers"], row["way"]) for row in rows] == [
        (kind, way) for kind in passes.KINDS for way in ways if kind == "two processes" or way != passes.NARROW
    ]
    for row in rows:
        assert float(row["passes_per_second"]) > 0
        if row["way"] == passes.UNIT:
            assert row["times"] == "1.000"


def test_library_ways(tmp_path, monkeypatch):
    ways = [way for way in passes.WAYS if way != "torch.compile"]
    monkeypatch.setattr(passes, "WAYS", ways)
    check_rows(tmp_path, *ways)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit._script")  # torch.compile's own
def test_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "KINDS", passes.KINDS[:1])  # each compiles anew
    check_rows(tmp_path, *passes.WAYS)


def test_arithmetic():
    """By hand: forward, by the weights, and by the input where it is no image; two operations for each product."""
    first, second, hidden, last = 24 * 24 * 8 * 25, 8 * 8 * 16 * 8 * 25, 256 * 128, 128 * 10
    each = 2 * first + 3 * (second + hidden + last)
    assert passes.arithmetic(passes.Passes("channels last")) == passes.COUNT * 2 * 32 * each
    assert passes.arithmetic(passes.Product()) == 2 * passes.Product.SIDE**3


@pytest.mark.parametrize("way", ["channels last", "channels first"])
def test_order_of_memory(way):
    images = passes.Passes(way).images
    last = images.permute(0, 2, 3, 1)
    assert (last if way == "channels last" else images).is_contiguous()
    assert torch.equal(images, passes.workload.data().x_train[: len(images)])


def test_ways_have_the_same_gradient():
    first, *others = (passes.Passes(way) for way in (passes.OWN, "channels last", "channels first"))
    for other in others:
        assert torch.allclose(first.model.gradient, other.model.gradient, atol=1e-6)
    assert first.model.gradient.count_nonzero() > 1000
