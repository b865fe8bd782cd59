"""A comparison from a study file, and a sweep: what becomes of the table, the options, the folders and the numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsynsam.cli import main
from fedsynsam.cli.compare import cells_of, command_of
from fedsynsam.cli.study import rhos_of, seeds_of, split_specs, sweep_of
from fedsynsam.errors import ConfigError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.synthetic import SyntheticSet, save_synthetic

STUDY = """
rounds = 2
eval-every = 1
local-steps = 1
clients = 4
partition = "iid"

[compare]
algorithms = ["fedavg", "fedsam"]
compressors = ["topk:0.5", "quantize:4[bucket=64,norm=max]"]
seeds = [3]
rhos = { fedsam = 0.2 }
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def test_a_table_is_the_same_as_the_words(study: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    words = ["--algorithms", "fedavg,fedsam", "--compressors", "topk:0.5,quantize:4[bucket=64,norm=max]"]
    words += ["--seeds", "3,", "--rhos", "fedsam=0.2", "--rounds", "2", "--eval-every", "1", "--local-steps", "1"]
    words += ["--clients", "4", "--partition", "iid"]
    cells = cells_of(command_of(["--config", str(study), *out]))
    assert len(cells) == 4
    assert cells == cells_of(command_of([*words, *out]))
    assert cells[1].path == tmp_path / "out" / "fedsam" / "topk-0.5" / "seed-3"


def test_options_go_before_the_table(study: Path) -> None:
    cells = cells_of(command_of(["--config", str(study), "--algorithms", "fedavg", "--seeds", "2", "--rounds", "5"]))
    assert [cell.path.name for cell in cells] == ["seed-0", "seed-0", "seed-1", "seed-1"]
    assert {cell.config.rounds for cell in cells} == {5}


def test_a_table_and_the_words_say_a_sweep_alike(study: Path) -> None:
    words = ["--sweep", "alpha=0.05,1,inf"]
    cells = cells_of(command_of(["--config", str(study), *words]))
    study.write_text(STUDY + "sweep = { alpha = [0.05, 1.0, inf] }\n")
    assert cells == cells_of(command_of(["--config", str(study)]))
    assert len(cells) == 12
    assert {cell.path.parent.name for cell in cells} == {"alpha-0.05", "alpha-1", "alpha-inf"}


def test_lists() -> None:
    assert seeds_of("3") == [0, 1, 2]
    assert seeds_of("3,") == [3]
    assert rhos_of("fedsam=0.1, realset=0.2") == {"fedsam": 0.1, "realset": 0.2}
    assert split_specs("none,quantize:2[bucket=8,norm=l2]") == ["none", "quantize:2[bucket=8,norm=l2]"]
    for text, values in {"synthetic-images=1,5": (1, 5), "model=mlp,cnn": ("mlp", "cnn")}.items():
        sweep = sweep_of(text)
        assert sweep is not None
        assert sweep.values == values
        assert all(type(value) is type(wanted) for value, wanted in zip(sweep.values, values, strict=True))


@pytest.mark.parametrize("key", ["threads", "engine", "device", "checkpoint-every", "encode", "cosines", "sharpness"])
def test_what_changes_no_result_cannot_be_swept(key: str) -> None:
    with pytest.raises(ConfigError, match=f"sweep: {key.replace('-', '_')} changes no result of a run"):
        sweep_of(f"{key}=1,2")


def test_run_takes_the_settings_of_a_study_alone(study: Path, tmp_path: Path) -> None:
    assert main(["run", "--config", str(study), "--algorithm", "fedavg", "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["clients"], config["seed"], config["compressor"]) == (4, 0, "topk:0.01")


def test_a_sweep_runs_goes_on_and_is_reported_by_value(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    base = ["compare", "--config", str(study), "--algorithms", "fedavg", "--compressors", "topk:0.5"]
    base += ["--out", str(out)]
    assert main([*base, "--sweep", "local_steps=2"]) == 0
    stamp = (out / "fedavg" / "topk-0.5" / "local_steps-2" / "seed-3" / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*base, "--sweep", "local_steps=10,2"]) == 0
    assert (out / "fedavg" / "topk-0.5" / "local_steps-2" / "seed-3" / "metrics.jsonl").stat().st_mtime_ns == stamp
    printed = capsys.readouterr().out
    assert printed.index("local_steps = 2") < printed.index("local_steps = 10")
    table = (out / "table.md").read_text()
    assert table.count("| fedavg |") == 2
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["local_steps"]) for row in rows) == [2, 10]
    headlines = json.loads((out / "headline.json").read_text())
    assert [entry["setting"] for entry in headlines] == ["local_steps = 2", "local_steps = 10"]
    assert "Accuracy against local_steps" in (out / "report.html").read_text()
    assert len((out / "sweep.png").read_bytes()) > 5000

    assert main(["report", str(out)]) == 0
    assert (out / "table.md").read_text() == table


def test_a_value_of_which_every_run_diverged_is_told(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--algorithms", "fedavg", "--compressors", "topk:0.5", "--sweep", "lr=0.05,1e30", "--out", str(out)]
    assert main(["compare", "--config", str(study), *words]) == 1
    assert "failed in 1 of 1 seeds" in capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert "| fedavg | failed in 1 of 1 seeds |" in table.split("## lr = 1e+30")[1]
    assert len((out / "results.csv").read_text().splitlines()) == 2
    (out / "some-model").mkdir()
    (out / "some-model" / "config.json").write_text("another program's")
    assert main(["report", str(out), "--out", str(out)]) == 0
    assert (out / "table.md").read_text() == table.replace("failed in", "unfinished in")


@pytest.fixture
def two_sets(tmp_path: Path) -> list[str]:
    """Two data sets of the same shape."""
    paths = []
    for number in range(2):
        images = np.random.default_rng(number).integers(0, 256, (40, 8, 8), dtype=np.uint8)
        labels = np.arange(40) % 4
        np.savez(tmp_path / f"{number}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        paths.append(str(tmp_path / f"{number}.npz"))
    return paths


def test_a_sweep_over_data_sets_is_reported_again(study: Path, two_sets: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--algorithms", "fedavg", "--compressors", "topk:0.5", "--model", "mlp", "--out", str(out)]
    assert main(["compare", "--config", str(study), *words, "--sweep", f"dataset={','.join(two_sets)}"]) == 0
    table = (out / "table.md").read_text()
    assert main(["report", str(out)]) == 0
    assert (out / "table.md").read_text() == table
    assert all(f"## dataset = {path}" in table for path in two_sets)


def test_a_cell_is_not_kept_for_another_synthetic_set(
    study: Path, two_sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = SyntheticSet(torch.rand(4, 1, 8, 8), torch.eye(4), torch.tensor(-3.0))
    save_synthetic(tmp_path / "set", learned, load_dataset(two_sets[0]), RunConfig(), 5)
    words = ["--algorithms", "fedsynsam", "--compressors", "topk:0.5", "--dataset", two_sets[0], "--model", "mlp"]
    words = ["compare", "--config", str(study), *words, "--synthetic", str(tmp_path / "set")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    save_synthetic(tmp_path / "set", learned, load_dataset(two_sets[1]), RunConfig(), 5)
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert f"synthetic: '{tmp_path / 'set'}' holds another set than when the run in" in capsys.readouterr().err


def test_the_note_on_a_set_that_is_not_learned_is_that_of_the_cells(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedsynsam.cli.compare.run_cells", lambda *_: [])
    words = ["compare", "--config", str(study), "--algorithms", "fedsynsam,fedavg", "--out", str(tmp_path / "out")]
    assert main([*words, "--sweep", "synthetic_start=1,2,40"]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert [note.split(", after round ")[1].split(";")[0] for note in notes] == ["2", "40"]
    assert main([*words, "--sweep", "rounds=60"]) == 0
    assert capsys.readouterr().err == ""


def test_an_infinite_value_is_a_number(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--algorithms", "fedavg", "--compressors", "topk:0.5", "--partition", "dirichlet", "--rounds", "1"]
    words = ["compare", "--config", str(study), *words, "--sweep", "alpha=inf,0.5", "--out", str(out)]
    assert main(words) == 0
    stored = (out / "fedavg" / "topk-0.5" / "alpha-inf" / "seed-3" / "config.json").read_text()
    assert json.loads(stored, parse_constant=pytest.fail)["alpha"] == "inf"
    table = (out / "table.md").read_text()
    assert table.index("alpha = 0.5") < table.index("alpha = inf")
    assert main(words) == 0  # nothing is run again
    assert (out / "table.md").read_text() == table
