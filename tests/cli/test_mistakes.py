"""Every mistake on the command line: exit code 2, exactly one line on standard error, nothing written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fedsynsam.cli import main
from fedsynsam.cli.run import new_folder
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.tensorfile import pack

MISTAKES = {
    "no command": ([], "known commands: run"),
    "unknown command": (["rum"], "unknown command 'rum'"),
    "unknown option": (["run", "--bogus", "3"], "--bogus"),
    "option without a value": (["run", "--config"], "config"),
    "word for a number": (["run", "--alpha", "x"], "--alpha"),
    "unknown algorithm": (["run", "--algorithm", "foo"], "known: fedsynsam"),
    "alpha zero": (["run", "--alpha", "0"], "alpha: 0.0 is out of range; give a finite number above 0, or inf"),
    "seed too large": (["run", "--seed", str(2**63)], f"and at most {2**63 - 1}"),
    "negative rounds": (["run", "--rounds", "-1"], "rounds: -1"),
    "unknown compressor": (["run", "--compressor", "gzip"], "topk"),
    "density above one": (["run", "--compressor", "topk:3"], "density"),
    "missing data": (["run", "--dataset", "nosuch.npz"], "nosuch.npz"),
    "missing data folder": (["run", "--dataset", "cifar10", "--data-dir", "nosuch"], "cifar10"),
    "missing config": (["run", "--config", "nosuch.toml"], "nosuch.toml"),
    "unknown config key": (["run", "--config", "bad.toml"], "did you mean 'rounds'"),
    "broken config": (["run", "--config", "broken.toml"], "not TOML"),
    "folder in use": (["run", "--out", "."], "not empty"),
    "folder is a file": (["run", "--rounds", "1", "--out", "bad.toml"], "out: 'bad.toml' is a file; give a folder"),
    "folder in a file": (
        ["run", "--rounds", "1", "--out", "bad.toml/x"],
        "out: the folder 'bad.toml/x' cannot be made",
    ),
    "resume without a folder": (["run", "--resume"], "--out"),
    "resume of nothing": (["run", "--resume", "--out", "nosuch"], "nosuch"),
    "missing synthetic set": (["run", "--synthetic", "nosuch.safetensors"], "'nosuch.safetensors' cannot be read"),
    "not a synthetic set": (["run", "--synthetic", "bad.toml"], "'bad.toml' is damaged"),
    "device without a number": (["run", "--device", "cuda:"], "known: auto, cpu, cuda, cuda:N"),
    "missing device": (["run", "--device", "cuda:99"], "cuda:99"),
    "compare: unknown algorithm": (["compare", "--algorithms", "fedavg,foo"], "'foo'"),
    "compare: unknown compressor": (["compare", "--compressors", "gzip"], "gzip"),
    "compare: bad seeds": (["compare", "--seeds", "a"], "seeds: 'a'"),
    "compare: single algorithm option": (["compare", "--algorithm", "fedavg"], "--algorithms"),
    "compare: bad rhos": (["compare", "--rhos", "fedsam"], "ALGORITHM=NUMBER"),
    "compare: rhos of nothing": (["compare", "--rhos", "fedsan=0.1"], "rhos: unknown algorithm 'fedsan'"),
    "compare: folder is a file": (["compare", "--out", "bad.toml"], "out: 'bad.toml' is a file; give a folder"),
    "compare: two settings in a table": (["compare", "--config", "two.toml"], "two.toml: sweep in [compare] has 2"),
    "compare: no compressors": (["compare", "--compressors", ","], "compressors: the list is empty"),
    "compare: sweep without values": (["compare", "--sweep", "alpha"], "KEY=VALUE,VALUE"),
    "compare: two settings in a sweep": (["compare", "--sweep", "alpha=0.1,beta=0.5"], "of one setting"),
    "compare: sweep of an unknown setting": (["compare", "--sweep", "alpa=0.1"], "did you mean 'alpha'"),
    "compare: sweep of a list": (["compare", "--sweep", "seed=1,2"], "give seeds instead"),
    "compare: sweep over a word": (["compare", "--sweep", "alpha=0.1,iid"], "alpha='iid' is not a number"),
    "compare: sweep over a fraction": (["compare", "--sweep", "synthetic_images=1.5"], "is not a whole number"),
    "compare: sweep of a measurement": (["compare", "--sweep", "sharpness=true"], "sharpness changes no result"),
    "compare: sweep out of range": (["compare", "--sweep", "alpha=0.1,0"], "alpha: 0.0 is out of range"),
    "compare: sweep over a value twice": (["compare", "--sweep", "alpha=0.1,0.10"], "gives a value twice"),
    "compare: two radii": (["compare", "--sweep", "rho=0.1,0.2", "--rhos", "fedsam=0.1"], "leave rhos empty"),
    "compare: unknown key in the table": (["compare", "--config", "study.toml"], "did you mean 'seeds'"),
    "compare: no table": (["compare", "--config", "flat.toml"], "expected a table [compare]"),
    "compare: no jobs": (["compare", "--jobs", "0"], "jobs: 0"),
    "report: nothing given": (["report"], "at least one folder"),
    "report: missing folder": (["report", "nosuch"], "nosuch"),
    "report: no run in it": (["report", "."], "no finished run"),
    "inspect: nothing given": (["inspect"], "file"),
    "inspect: missing file": (["inspect", "nosuch"], "nosuch"),
    "inspect: a folder": (["inspect", "."], "file: '.' cannot be read (Is a directory)"),
    "inspect: a checkpoint": (["inspect", "state.safetensors"], "'state.safetensors' is no payload but a checkpoint"),
    "inspect: no payload": (["inspect", "bad.toml"], "bad.toml"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("roundz = 3\n")
    (tmp_path / "broken.toml").write_text("rounds = = 3\n")
    (tmp_path / "study.toml").write_text("[compare]\nseed = 3\n")
    (tmp_path / "flat.toml").write_text("compare = 3\n")
    (tmp_path / "two.toml").write_text("[compare.sweep]\nalpha = [0.1]\nrho = [0.1]\n")
    (tmp_path / "state.safetensors").write_bytes(pack({"weights": torch.zeros(3)}))
    files = sorted(tmp_path.iterdir())
    argv, expected = MISTAKES[case]
    assert main(argv) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("fedsynsam: error: ")
    assert expected.lower() in lines[0].lower()
    assert sorted(tmp_path.iterdir()) == files, "nothing was written"


RUN = ["run", "--rounds", "2", "--local-steps", "1", "--clients", "2", "--partition", "iid", "--algorithm", "fedavg"]


@pytest.mark.parametrize("command", ["report", "sharpness", "run --resume --out"])
def test_a_damaged_run_names_the_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--out", str(tmp_path)]) == 0
    files = {"config.json": ("[]", "")}
    if command == "report":
        files = dict.fromkeys(("config.json", "summary.json", "metrics.jsonl"), ("", "[]", "{}", "null", "3\n"))
    for name, contents in files.items():
        whole = (tmp_path / name).read_text()
        for content in contents:
            (tmp_path / name).write_text(content)
            capsys.readouterr()
            assert main([*command.split(), str(tmp_path)]) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1
            assert str(tmp_path / name) in lines[0]
        (tmp_path / name).write_text(whole)


def test_resuming_takes_the_settings_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main([*RUN, *out]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert main(["run", "--resume", *out]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    capsys.readouterr()
    assert main(["run", "--resume", "--rounds", "3", *out]) == 2
    assert "has rounds=2, not 3; a run goes on with the settings" in capsys.readouterr().err


def test_runs_started_together_without_a_folder_get_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(new_folder, [config] * 4))
    assert len(set(made)) == 4
    assert all(path.is_dir() for path in made)


def test_a_folder_with_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["run", "--rounds", "1", "--local-steps", "1", "--clients", "2", "--partition", "iid"]
    options += ["--algorithm", "fedavg", "--out", str(tmp_path / "run")]
    assert main(options) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(options) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["compare", "--out", str(tmp_path / "run")]) == 2
    assert "holds a run; give another folder for the comparison" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
