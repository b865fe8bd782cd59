"""What a benchmark judges, which backends it times, and what it writes; the devices are made up."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest
import torch

from benchmarks import run
from benchmarks.cases import CASES
from benchmarks.goals import GOALS, judge, verdict
from fedsynsam.ops import backend

BY_LABEL = {case.label: case for case in CASES}
TOP = "topk 0.01 + residual"


def row(label: str, name: str = "cuda", times_copy: float = 1.0, median_ms: float = 1.0, **more: object) -> dict:
    made_up = {"label": label, "backend": name, "rows": 1, "n": 100, "times_copy": f"{times_copy:.3f}"}
    return {**made_up, "median_ms": f"{median_ms:.4f}", **more}


def judged(*rows: dict) -> list[str | None]:
    judge(rows, CASES, "cuda")
    return [r.get("met") for r in rows]


@pytest.mark.parametrize(
    ("label", "largest"),
    [
        ("chunk_topk 0.01 + residual", 1 / 0.90),
        (TOP, 16 / 12 / 0.90),
        ("quantize 4 bit", 1 / 0.88),
        ("quantize 4 bit + residual", 1 / 0.88),
        ("aggregate 32 x 4 bit", 1 / 0.85),
        ("aggregate 32 x sparse 0.01", 1 / 0.85),
        ("sam_perturb", 1 / 0.90),
        ("sam_step + momentum", 1 / 0.90),
    ],
)
def test_a_gpu_goal_is_a_share_of_the_copys_bandwidth(label, largest):
    rows = [row(label, name, largest + change) for name in ("cuda", "triton") for change in (-0.01, 0.01)]
    assert judged(*rows) == ["yes", "no", "yes", "no"]
    assert rows[0]["goal"] == f"times_copy<={largest:.3g}"


def test_every_case_with_a_goal_has_one_for_both_devices():
    assert {(case.goal, device) for case in CASES if case.goal for device in ("cpu", "cuda")} == set(GOALS)


def test_the_eager_pipeline_is_to_be_eight_times_slower():
    assert judged(row(TOP, "eager", speedup="8"), row(TOP, "eager", speedup="7.99")) == ["yes", "no"]
    assert judged(row(TOP, "compiled", speedup="2"), row(TOP, "allocating", speedup="1")) == [None, None]


def test_index_coding_is_judged_by_the_fastest_kernel_of_its_top_k():
    coding = [row("encode indices 0.01", "triton", median_ms=ms) for ms in (0.99, 1.01)]
    tops = [row(TOP, "triton", median_ms=30), row(TOP, "cuda", median_ms=10), row(TOP, "reference", median_ms=1)]
    assert judged(*tops, *coding)[3:] == ["yes", "no"]
    assert judged(row(TOP, "reference", median_ms=10), row("decode indices 0.01", median_ms=0.1))[1] is None
    assert judged(row("decode indices 0.01")) == [None]


def test_a_missed_goal_is_reported_with_its_figure():
    rows = [row("sam_step", times_copy=1.0), row("sam_step", "triton", times_copy=1.5, median_ms=2.25)]
    judge(rows, CASES, "cuda")
    assert verdict(rows) == [
        "missed: sam_step (triton, 1 x 100): times_copy<=1.11, is 1.500 x copy, 2.2500 ms",
        "1 of 2 goals met",
    ]


def test_backends_are_those_that_serve_and_are_usable(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(backend, "why_not", lambda name: "not here" if name == "cuda" else None)
    monkeypatch.setitem(backend.GPU_BACKENDS, "sam_step", ("cuda", "triton"))
    monkeypatch.delitem(backend.GPU_BACKENDS, "topk", raising=False)
    assert run.backends_of(BY_LABEL["sam_step"], gpu, []) == ["triton"]
    assert run.backends_of(BY_LABEL["sam_step"], gpu, ["cuda"]) == []
    assert run.backends_of(BY_LABEL[TOP], gpu, []) == ["reference"]
    assert run.backends_of(BY_LABEL[TOP], gpu, ["cuda", "triton"]) == []
    monkeypatch.setattr(backend, "why_not", lambda _: None)
    assert run.backends_of(BY_LABEL["sam_step"], gpu, []) == ["cuda", "triton"]
    assert run.backends_of(BY_LABEL["sam_step"], gpu, ["triton"]) == ["triton"]


def test_every_case_names_a_kernel_that_backends_know():
    known = {"topk", "chunk_topk", "encode_indices", "decode_indices", "quantize", "dequantize"}
    known |= {"aggregate_codes", "aggregate_sparse", "sam_perturb", "sam_step"}
    assert {case.kernel or case.op for case in CASES} == known


@pytest.mark.parametrize("text", ["", "1e6", "2x", "0x5", "axb", "1x2x3"])
def test_sizes_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        run.shapes(text)


def test_a_small_run_writes_each_backend_and_peer(tmp_path: Path, capsys):
    out = tmp_path / "new" / "small.csv"
    options = ["--device", "cpu", "--sizes", "1x3000,2x1000", "--seconds", "0.001", "--out", str(out)]
    run.main([*options, "--op", "topk,index_coding,sam_step", "--only", "0.01", "--peers", "allocating,eager"])
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = [r for r in rows if not r["speedup"]]
    assert {(r["rows"], r["n"]) for r in rows} == {("1", "3000"), ("2", "1000")}
    assert {r["label"] for r in own} == {TOP, "encode indices 0.01", "decode indices 0.01"}
    assert {r["backend"] for r in own} == {backend.choose("topk", torch.device("cpu"))}
    assert {r["backend"] for r in rows if r["speedup"]} == {"allocating", "eager"}
    assert {r["against"] for r in rows if r["speedup"]} == {own[0]["backend"]}
    assert all(float(r["copy_gbps"]) > 0 and r["device"] and r["torch"] for r in rows)
    if own[0]["extra_bytes"]:  # resident memory can be measured here
        assert all(int(r["extra_bytes"]) >= int(r["scratch_bytes"]) >= 0 for r in own)
    assert "goals met" in capsys.readouterr().out
    assert not list(out.parent.glob("*.part"))
