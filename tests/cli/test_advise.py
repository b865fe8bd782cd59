"""`fedsynsam advise`: its arithmetic, its table and its files."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedsynsam import Payload
from fedsynsam.cli import advise, main
from fedsynsam.cli.advise import Cost, _bits, _seconds
from fedsynsam.report.text import bytes_text

ROOT = Path(__file__).resolve().parents[2]


def test_break_even_is_where_both_take_as_long() -> None:
    dense, sparse = Cost("dense", 4_000_000, 0.01, 0.001), Cost("topk:0.01", 50_000, 0.05, 0.002)
    limit = sparse.pays_below(dense, clients=10)
    assert sparse.seconds(limit, 10) == pytest.approx(dense.seconds(limit, 10))
    assert sparse.seconds(limit / 2, 10) < dense.seconds(limit / 2, 10)
    assert sparse.seconds(limit * 2, 10) > dense.seconds(limit * 2, 10)


def test_break_even_at_the_ends() -> None:
    dense = Cost("dense", 4000, 0.01, 0.001)
    assert Cost("faster and smaller", 400, 0.001, 0.001).pays_below(dense, 5) == float("inf")
    assert Cost("larger", 4001, 0.001, 0.001).pays_below(dense, 5) == 0.0


def test_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--model-size", "20k", "--repeats", "1", "--specs", "topk:0.1,quantize:4[bucket=64,norm=l2]"]
    assert main(["advise", *few, "--bandwidth", "1M", "--clients", "3", "--out", str(tmp_path / "advice")]) == 0
    printed = capsys.readouterr().out
    assert "fastest at 1 Mbit/s and 3 clients" in printed
    assert "quantize:4[" in printed
    with (tmp_path / "advice" / "advice.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["spec"] for row in rows] == ["dense float32", "topk:0.1", "quantize:4[bucket=64,norm=l2]"]
    assert int(rows[0]["wire_bytes"]) == 80_000 > 5 * int(rows[1]["wire_bytes"])
    assert all(float(row["client_seconds"]) > 0 for row in rows)
    assert all(row["device"] and row["torch"] == torch.__version__ and int(row["threads"]) > 0 for row in rows)
    assert (tmp_path / "advice" / "advice.png").read_bytes().startswith(b"\x89PNG")


def test_each_payload_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, aggregated = list[bytes](), list[int]()

    def decode(blob: bytes, **like: object) -> Payload:
        decoded.append(blob)
        return Payload.decode(blob, **like)  # type: ignore[arg-type]

    def aggregate(payloads: list[Payload]) -> None:
        aggregated.append(len({id(payload) for payload in payloads}))

    monkeypatch.setattr(advise, "Payload", SimpleNamespace(decode=decode))
    monkeypatch.setattr(advise, "aggregate", aggregate)
    advise.measure("quantize:4", 1000)
    assert aggregated == [advise.AGGREGATED] * 2
    assert len(set(decoded)) == advise.AGGREGATED
    assert len(decoded) == 2 * advise.AGGREGATED


def test_where_nothing_pays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--model-size", "1k", "--repeats", "1", "--specs", "quantize:8", "--bandwidth", "900G"]) == 0
    assert "clients: dense float32: no spec pays there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bandwidth", "fast"], "bandwidth: is 'fast'; expected a number such as 100k, 25.6M or 1G"),
        (["--model-size", "0"], "model-size: is '0'"),
        (["--model-size", "0.5"], "model-size: is '0.5'; expected at least one value"),
        (["--clients", "0"], "clients: is 0; expected 1 or more"),
        (["--specs", "topk:2"], "topk"),
    ],
)
def test_bad_input(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *options]) == 2
    assert words in capsys.readouterr().err


def committed(size: str) -> tuple[list[list[Cost]], dict[str, float]]:
    """The costs of the two committed runs of a size, and the lower of the two limits that they state, by spec.

    The limits were computed from unrounded times.
    """
    runs, limits = [], dict[str, float]()
    for folder in (size, f"{size}-again"):
        with (ROOT / "benchmarks" / "results" / "advise" / folder / "advice.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        times = [(float(row["client_seconds"]), float(row["server_seconds_each"])) for row in rows]
        runs.append([Cost(row["spec"], int(row["wire_bytes"]), *time) for row, time in zip(rows, times, strict=True)])
        for row in rows[1:]:
            assert row["clients"] == "10"
            limits[row["spec"]] = min(float(row["pays_below_bps"]), limits.get(row["spec"], math.inf))
    return runs, limits


def page_row(spec: str, runs: list[list[Cost]], of_ten: float) -> str:
    """What docs/when-to-compress.md says of a spec: times of both runs, and the lower limit of the two."""
    both, denses = [next(cost for cost in run if cost.spec == spec) for run in runs], [run[0] for run in runs]
    one, hundred = (
        min(cost.pays_below(dense, clients) for cost, dense in zip(both, denses, strict=True)) for clients in (1, 100)
    )
    limits = (one, of_ten, hundred)
    client, server = (" / ".join(_seconds(getattr(cost, side)) for cost in both) for side in ("client", "server"))
    return f"| `{spec}` | {bytes_text(both[0].wire_bytes)} | {client} | {server} | {' | '.join(map(_bits, limits))} |"


@pytest.mark.parametrize("size", ["37610", "25.6M"])
def test_the_page_holds_the_committed_figures(size: str) -> None:
    (runs, limits), page = committed(size), (ROOT / "docs" / "when-to-compress.md").read_text()
    for cost in runs[0][1:]:
        assert page_row(cost.spec, runs, limits[cost.spec]) in page
