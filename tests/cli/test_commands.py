"""Each command's happy path on tiny runs, through the entry point that the shell calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedsynsam as fs
from fedsynsam.cli import main

TINY = ["--rounds", "2", "--eval-every", "1", "--local-steps", "2", "--clients", "6", "--participation", "0.5"]
TINY += ["--partition", "iid", "--synthetic-start", "1", "--synthetic-segment", "1", "--synthetic-steps", "2"]


def test_run_writes_its_folder_and_says_what_it_came_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", *TINY, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "smaller than dense float32" in printed.out
    assert "\x1b" not in printed.out + printed.err, "no colours or bars where no terminal is"
    assert printed.err.count("accuracy") == 2, "a line an evaluation"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    assert {"test_accuracy", "test_loss", "train_loss", "uplink_bytes", "downlink_bytes", "seconds"} <= set(rows[0])
    assert json.loads((out / "config.json").read_text())["algorithm"] == "fedsynsam"
    assert json.loads((out / "summary.json").read_text())["uplink_bytes"] == sum(row["uplink_bytes"] for row in rows)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "synthetic.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("*.part"))
    picture = (out / "synthetic.png").read_bytes()
    (out / "synthetic.png").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "synthetic.png").read_bytes() == picture

    again = tmp_path / "again"
    assert main(["run", *TINY, "--synthetic", str(out / "synthetic.safetensors"), "--out", str(again)]) == 0
    assert (again / "synthetic.png").read_bytes() == picture


def test_a_reader_that_left_is_no_error(tmp_path: Path) -> None:
    assert main(["run", *TINY, "--out", str(tmp_path / "run")]) == 0
    for command in (["info"], ["report", "run"]):  # a table, and plain lines
        read, write = os.pipe()
        os.close(read)
        words = [sys.executable, "-m", "fedsynsam", *command]
        try:
            done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        finally:
            os.close(write)
        assert (done.returncode, done.stderr) == (1, ""), command


def test_sharpness_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", *TINY, "--algorithm", "fedavg", "--out", str(out)]) == 0
    few = ["--count", "2", "--sample", "60", "--probes", "2", "--points", "3"]
    assert main(["sharpness", str(out), *few, "--device", "cuda:99"]) == 2
    assert "device: 'cuda:99' is not there" in capsys.readouterr().err
    assert main(["sharpness", str(out), *few]) == 0
    assert "eigenvalue 2" in capsys.readouterr().out
    found = json.loads((out / "sharpness.json").read_text())
    assert found["eigenvalues"] == sorted(found["eigenvalues"], reverse=True)
    assert (found["round"], found["sample"]) == (2, 60)
    assert [len(row) for row in found["plane"]] == [3, 3, 3]
    assert found["plane"][1] == pytest.approx(found["line"])
    assert (out / "slices.png").read_bytes().startswith(b"\x89PNG")


def test_sharpness_refuses_other_data_than_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", *TINY, "--algorithm", "fedavg", "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dataset_crc32": "0"}))
    assert main(["sharpness", str(out)]) == 2
    assert "holds other data than when the run in" in capsys.readouterr().err


def test_report_counts_a_folder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", *TINY, "--algorithm", "fedavg", "--out", str(out)]) == 0
    assert main(["report", str(out), str(tmp_path), "--out", str(tmp_path / "both")]) == 0
    assert len((tmp_path / "both" / "results.csv").read_text().splitlines()) == 2
    shutil.copytree(out, tmp_path / "again")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "both")]) == 2
    assert "are both fedavg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nothing"], "nothing' holds no run"),
        (["run", "--count", "0"], "count: is 0; expected 1 or more"),
        (["run", "--points", "1"], "points: is 1; a slice has at least 2"),
        (["run", "--radius", "-1"], "radius: is -1.0; expected a finite number above 0"),
        (["run", "--radius", "inf"], "radius: is inf; expected a finite number above 0"),
    ],
)
def test_sharpness_refuses(options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sharpness", str(tmp_path / options[0]), *options[1:]]) == 2
    assert words in capsys.readouterr().err


def test_options_go_before_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('algorithm = "fedavg"\nlr = 0.01\nlocal-steps = 1\n')
    out = tmp_path / "run"
    assert main(["run", "--config", str(file), *TINY, "--lr", "0.02", "--no-encode", "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["algorithm"], config["lr"], config["local_steps"], config["encode"]) == ("fedavg", 0.02, 2, False)


def test_the_default_folder_is_a_new_one_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["run", *TINY, "--algorithm", "fedavg"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "fedavg-topk-0.01-seed0",
        "fedavg-topk-0.01-seed0-2",
    ]


def test_compare_keeps_finished_cells_and_finishes_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare"
    base = ["compare", *TINY, "--compressors", "none,quantize:4[bucket=64]", "--out", str(out)]
    assert main([*base, "--algorithms", "fedavg", "--seeds", "1"]) == 0
    stamp = (out / "fedavg" / "none" / "seed-0" / "metrics.jsonl").stat().st_mtime_ns
    assert main([*base, "--algorithms", "fedavg,fedsam", "--seeds", "1", "--rhos", "fedsam=0.2"]) == 0
    assert (out / "fedavg" / "none" / "seed-0" / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert "quantize:4[bucket=64]" in capsys.readouterr().out
    lines = (out / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    assert json.loads((out / "fedsam" / "none" / "seed-0" / "config.json").read_text())["rho"] == 0.2
    assert "undefined (not run: fedlesam, fedsynsam, realset)" in (out / "table.md").read_text()
    for name in ("accuracy.png", "bytes.png", "bars.png"):
        assert len((out / name).read_bytes()) > 5000
    page = (out / "report.html").read_text()
    assert page.count('class="plotly-graph-div"') == 3

    before = (out / "results.csv").read_bytes()
    (out / "results.csv").unlink()
    assert main(["report", str(out)]) == 0
    assert sorted((out / "results.csv").read_text().splitlines()) == sorted(before.decode().splitlines())


def test_a_cell_that_fails_is_named_and_the_others_finish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare"
    # with 100 steps of this rate the weights overflow: the update is not finite, and the run says so
    options = ["--lr", "1e30", "--algorithms", "fedavg", "--compressors", "topk:0.5", "--seeds", "2"]
    assert main(["compare", *TINY, *options, "--out", str(out)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("fedavg topk:0.5 seed" in line and "Traceback" not in line for line in errors)


def test_info_names_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for name in ("backend reference", "backend cpu", "backend triton", "backend cuda", "data fashion-mnist-subset"):
        assert name in printed


def test_inspect_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    update = {"weight": torch.randn(50, 40), "bias": torch.randn(40)}
    compressor = fs.compressor("topk:0.1+quantize:4")
    blob = compressor.compress(update, compressor.init(update), seed=1)[0].encode()
    file = tmp_path / "payload.safetensors"
    file.write_bytes(blob)
    assert main(["inspect", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "topk:0.1+quantize:4" in printed
    assert f"204 of {2040} values" in printed
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    assert int(rows["total"][1]) == len(blob)
    assert sum(int(rows[name][2]) for name in ("container", "indices", "codes", "scales")) == len(blob)


def test_inspect_shows_a_hostile_name_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    update = {"\x1b]0;owned\x07\x1b[2Jw": torch.ones(3), "größe": torch.ones(2)}
    compressor = fs.compressor("none")
    (tmp_path / "payload").write_bytes(compressor.compress(update, compressor.init(update), seed=1)[0].encode())
    assert main(["inspect", str(tmp_path / "payload")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert r"'\x1b]0;owned\x07\x1b[2Jw'" in printed
    assert "\ngröße" in printed


def test_module_and_script_are_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fedsynsam", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"fedsynsam {fs.__version__}"


@pytest.mark.parametrize("command", ["run", "compare", "report", "info", "inspect"])
def test_help_of_each_command(command: str) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "fedsynsam", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert f"fedsynsam {command}" in done.stdout
