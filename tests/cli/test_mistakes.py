"""Every mistake on the command line: exit code 2, exactly one line on standard error, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsynsam.cli import main

MISTAKES = {
    "no command": ([], "known commands: run"),
    "unknown command": (["rum"], "unknown command 'rum'"),
    "unknown option": (["run", "--bogus", "3"], "--bogus"),
    "option without a value": (["run", "--config"], "config"),
    "word for a number": (["run", "--alpha", "x"], "--alpha"),
    "unknown algorithm": (["run", "--algorithm", "foo"], "known: fedsynsam"),
    "alpha zero": (["run", "--alpha", "0"], "alpha: 0.0 is out of range"),
    "negative rounds": (["run", "--rounds", "-1"], "rounds: -1"),
    "unknown compressor": (["run", "--compressor", "gzip"], "topk"),
    "density above one": (["run", "--compressor", "topk:3"], "density"),
    "missing data": (["run", "--dataset", "nosuch.npz"], "nosuch.npz"),
    "missing data folder": (["run", "--dataset", "cifar10", "--data-dir", "nosuch"], "cifar10"),
    "missing config": (["run", "--config", "nosuch.toml"], "nosuch.toml"),
    "unknown config key": (["run", "--config", "bad.toml"], "did you mean 'rounds'"),
    "broken config": (["run", "--config", "broken.toml"], "not TOML"),
    "folder in use": (["run", "--out", "."], "not empty"),
    "resume without a folder": (["run", "--resume"], "--out"),
    "resume of nothing": (["run", "--resume", "--out", "nosuch"], "nosuch"),
    "missing synthetic set": (["run", "--synthetic", "nosuch.safetensors"], "'nosuch.safetensors' cannot be read"),
    "not a synthetic set": (["run", "--synthetic", "bad.toml"], "'bad.toml' is damaged"),
    "missing device": (["run", "--device", "cuda:99"], "cuda:99"),
    "compare: unknown algorithm": (["compare", "--algorithms", "fedavg,foo"], "'foo'"),
    "compare: unknown compressor": (["compare", "--compressors", "gzip"], "gzip"),
    "compare: bad seeds": (["compare", "--seeds", "a"], "seeds: 'a'"),
    "compare: single algorithm option": (["compare", "--algorithm", "fedavg"], "--algorithms"),
    "compare: bad rhos": (["compare", "--rhos", "fedsam"], "ALGORITHM=NUMBER"),
    "compare: no jobs": (["compare", "--jobs", "0"], "jobs: 0"),
    "report: nothing given": (["report"], "at least one folder"),
    "report: missing folder": (["report", "nosuch"], "nosuch"),
    "report: no run in it": (["report", "."], "no finished run"),
    "inspect: nothing given": (["inspect"], "file"),
    "inspect: missing file": (["inspect", "nosuch"], "nosuch"),
    "inspect: no payload": (["inspect", "bad.toml"], "bad.toml"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("roundz = 3\n")
    (tmp_path / "broken.toml").write_text("rounds = = 3\n")
    argv, expected = MISTAKES[case]
    assert main(argv) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("fedsynsam: error: ")
    assert expected.lower() in lines[0].lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.toml", "broken.toml"], "nothing was written"


def test_a_folder_with_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["run", "--rounds", "1", "--local-steps", "1", "--clients", "2", "--partition", "iid"]
    options += ["--algorithm", "fedavg", "--out", str(tmp_path / "run")]
    assert main(options) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(options) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
