"""What fuzzing found worth keeping still does no harm: in this process, and in the sanitized C++ extension."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_corpus() -> None:
    printed = run(str(FOLDER / "payload.py"), "--replay", str(FOLDER / "corpus"))
    assert int(printed.split()[0]) > 50
    assert "no fault" in printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ and its sanitizers")
def test_corpus_in_the_sanitized_extension() -> None:
    assert "no fault" in run(str(FOLDER / "sanitized.py"), "5")
