"""Every example runs, and says what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_loop() -> None:
    found = re.search(r"accuracy ([\d.]+), uplink \d+ bytes, (\d+) x smaller", run("own_loop.py"))
    assert found is not None
    assert float(found[1]) > 0.9
    assert int(found[2]) >= 50


def test_file_exchange(tmp_path: Path) -> None:
    printed = run("file_exchange.py", str(tmp_path))
    assert "client-9.payload left out: " in printed
    found = re.search(r"distance left ([\d.]+) of 1.000", printed)
    assert found is not None
    assert float(found[1]) < 0.5
    assert not list(tmp_path.rglob("*.part"))


def test_state_dict() -> None:
    assert re.search(
        r"5 tensors, \d+ of 18112 values in \d+ bytes, \d+\.\d x smaller than bfloat16", run("state_dict.py")
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_tested(path: Path) -> None:
    assert f'run("{path.name}"' in Path(__file__).read_text()
