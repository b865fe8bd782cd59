"""benchmarks/gpu.sh without a GPU: what it would run, and how it goes on when a part fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ["build", "tests", "sanitize", "bench", "plot", "ncu", "rounds"]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def summary(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    lines = result.stdout.split("=== summary\n")[1].splitlines()
    return {line.split()[0]: line.split(" s  ")[1] for line in lines}


def test_a_dry_run_prints_each_part_with_its_limit_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    result = script("--dry-run", OUT=str(out), PYTHON="/nonexistent")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert list(dict.fromkeys(line.split(" (")[0] for line in lines)) == PARTS
    limits = {line.split(" (")[0]: int(line.split("(")[1].split(" s)")[0]) for line in lines}
    assert sum(limits.values()) <= 580  # a command on a lent machine may take ten minutes
    for part in ("FEDSYNSAM_CUDA=1", "-m gpu", "memcheck", "racecheck", "synccheck", "1x1e8", "64x1e6", "ncu.csv"):
        assert part in result.stdout
    assert "tests/ops/test_sam_gpu.py" in result.stdout
    assert not out.exists()


def test_one_part_alone():
    result = script("--dry-run", "plot")
    assert [line.split(" (")[0] for line in result.stdout.splitlines()] == ["plot"]


def test_an_unknown_part_is_refused():
    result = script("profile")
    assert result.returncode == 2
    assert "no part is called profile; parts: build tests" in result.stderr


def test_the_help_is_the_comment_at_the_top():
    result = script("--help")
    assert result.returncode == 0
    assert "Exit code: 0 all well" in result.stdout
    assert "pipefail" not in result.stdout


def test_a_failed_part_does_not_stop_the_others(tmp_path):
    failing = 'case "$*" in *"-m pytest"*) exit 5 ;; *"-m benchmarks --device"*) touch "$OUT/gpu.csv" ;; esac'
    result = script("build", "tests", "bench", "plot", OUT=str(tmp_path), PYTHON=program(tmp_path / "python", failing))
    assert summary(result) == {"build": "ok", "tests": "failed (exit code 5)", "bench": "ok", "plot": "ok"}
    assert result.returncode == 1
    assert "=== summary" in (tmp_path / "gpu.log").read_text(encoding="utf-8")


def test_missing_tools_are_named_and_are_no_failure(tmp_path):
    python = program(tmp_path / "python", 'case "$*" in *"import pytest"*) exit 1 ;; esac')
    result = script("tests", "plot", OUT=str(tmp_path), PYTHON=python)
    assert result.returncode == 3
    assert "tests: MISSING: pytest" in result.stdout
    assert "plot: MISSING:" in result.stdout
    assert set(summary(result).values()) == {"missing a tool (see above)"}


def test_a_part_that_hangs_is_ended(tmp_path):
    python = program(tmp_path / "python", 'case "$*" in *"-m benchmarks --device"*) exec sleep 60 ;; esac')
    result = script("bench", "tests", OUT=str(tmp_path), PYTHON=python, EACH="2")
    assert summary(result) == {"tests": "ok", "bench": "out of time (2 s)"}
    assert result.returncode == 1


def test_sanitizers_all_run_and_one_finding_fails_the_part(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    program(tools / "compute-sanitizer", 'echo "tool $2"; [ "$2" != racecheck ] || exit 9')
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHON": program(tmp_path / "python", "exit 0")}
    result = script("sanitize", OUT=str(tmp_path), **environment)
    assert summary(result) == {"sanitize": "failed (exit code 9)"}
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert f"tool {tool}" in result.stdout
