"""The arithmetic of a comparison on made-up runs, and its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.report.comparison import headline_text, markdown_table, write_comparison
from fedsynsam.report.figures import save_curves
from fedsynsam.report.groups import headline, read_cells
from fedsynsam.report.runs import Run
from fedsynsam.report.text import bytes_text

VERSIONS = {"fedsynsam": "0", "python": "3", "torch": "2", "numpy": "2", "commit": None}


def run(algorithm: str, seed: int, accuracy: float, compressor: str = "topk:0.01") -> Run:
    config: dict[str, Any] = {"algorithm": algorithm, "compressor": compressor, "seed": seed, "versions": VERSIONS}
    rounds = [
        RoundMetrics(
            round=number,
            train_loss=1 / number,
            uplink_bytes=100,
            downlink_bytes=1000,
            seconds=0.1,
            test_accuracy=accuracy * number / 5,
            test_loss=2 / number,
        )
        for number in range(1, 6)
    ]
    summary = {"final_accuracy": accuracy, "last_accuracy": accuracy, "uplink_bytes": 500, "uplink_ratio": 80.0}
    summary |= {"downlink_bytes": 5000, "seconds": 0.5, "dense_uplink_bytes": 40000, "parameters": 1000, "rounds": 5}
    return Run(Path(), config, rounds, summary)


def runs_of(**accuracies: list[float]) -> list[Run]:
    return [run(name, seed, value) for name, values in accuracies.items() for seed, value in enumerate(values)]


def test_headline_is_the_share_of_the_possible_gain() -> None:
    runs = runs_of(
        fedavg=[0.70, 0.72], fedsam=[0.60, 0.60], fedlesam=[0.5, 0.5], fedsynsam=[0.73, 0.73], realset=[0.75, 0.75]
    )
    entry = headline(read_cells(runs), "topk:0.01")
    assert entry["best"] == "fedavg"
    assert entry["value"] == pytest.approx((0.73 - 0.71) / (0.75 - 0.71))
    assert "0.50 (best: fedavg)" in headline_text(entry)


def test_headline_is_undefined_where_real_images_do_not_help() -> None:
    runs = runs_of(fedavg=[0.7], fedsam=[0.8], fedlesam=[0.5], fedsynsam=[0.9], realset=[0.8])
    entry = headline(read_cells(runs), "topk:0.01")
    assert entry["value"] is None
    assert "realset is no better than fedsam" in headline_text(entry)


def test_headline_names_what_was_not_run() -> None:
    entry = headline(read_cells(runs_of(fedavg=[0.7])), "topk:0.01")
    assert entry["reason"] == "not run: fedsam, fedlesam, fedsynsam, realset"


def test_table_has_mean_and_standard_deviation() -> None:
    table = markdown_table(read_cells(runs_of(fedavg=[0.70, 0.72], fedsam=[0.6])))
    assert "| fedavg | 71.00 ± 1.41 |" in table
    assert "| fedsam | 60.00 |" in table
    assert "(80.0 x smaller)" in table


def test_figures_are_pictures_with_something_on_them(tmp_path: Path) -> None:
    runs = runs_of(fedavg=[0.7, 0.72], fedsam=[0.6, 0.65])
    pictures = [path for path in write_comparison(read_cells(runs), tmp_path) if path.suffix == ".png"]
    pictures.append(save_curves(runs[0].rounds, tmp_path / "curves.png", title="a run"))
    assert len(pictures) == 4
    for path in pictures:
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 300
        assert (pixels.min(axis=2) < 0.9).mean() > 0.01, f"{path.name} is empty"


def test_curves_show_what_was_logged(tmp_path: Path) -> None:
    rounds = run("fedsynsam", 0, 0.7).rounds
    plain = imread(save_curves(rounds, tmp_path / "plain.png", title="a run"))
    rounds[2] = replace(rounds[2], cosines={"local": 0.1, "real": 0.9})
    rounds[4] = replace(rounds[4], cosines={"local": 0.0, "real": 0.8, "synthetic": 0.7}, sharpness=12.0)
    full = imread(save_curves(rounds, tmp_path / "full.png", title="a run"))
    assert full.shape[1] == pytest.approx(plain.shape[1] * 5 / 3, rel=0.01)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB"), (5e13, "50 TB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert bytes_text(count) == text
