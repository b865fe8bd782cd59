"""The example apps run, the page shows their difference, and its tables are those of the committed results."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.flower.__main__ import accuracy_table, read, wire_table

ROOT = Path(__file__).parents[3]
EXAMPLES, RESULTS = ROOT / "examples" / "flower", ROOT / "benchmarks" / "results" / "flower"
PAGE = (ROOT / "docs" / "flower.md").read_text(encoding="utf-8")


def changed_lines(before: Path, after: Path) -> list[str]:
    """The lines that differ between two folders, `+` and `-` as in a patch."""
    lines = []
    for path in sorted(path.relative_to(after) for path in after.rglob("*") if path.suffix in (".py", ".toml")):
        old, new = ((folder / path).read_text(encoding="utf-8").splitlines() for folder in (before, after))
        patch = list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]
        lines += [line for line in patch if not line.startswith("@@")]
    return lines


def test_the_page_shows_the_whole_difference() -> None:
    shown = [line for block in re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    changed = changed_lines(EXAMPLES / "before", EXAMPLES / "after")
    assert [line for line in shown if line[:1] in "+-"] == changed
    assert len([line for line in changed if line.startswith("+")]) == 4, "two imports and two lines"


def test_the_page_shows_the_committed_results() -> None:
    assert wire_table(read(RESULTS / "wire.csv")) in PAGE
    assert accuracy_table(read(RESULTS / "accuracy.csv")) in PAGE


@pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="Flower is not installed; .ci/run has an environment with it"
)
@pytest.mark.parametrize("name", ["before", "after", "fedsynsam"])
def test_the_example_learns(name: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    words = ["rounds=7", "partitions=3", "local-steps=5", f"result={json.dumps(str(result))}"]
    words += ["synthetic-start=5"] if name == "fedsynsam" else []
    script = ROOT / "tests" / "support" / "flower_example.py"
    done = subprocess.run(
        [sys.executable, str(script), str(EXAMPLES / name), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    accuracies = json.loads(result.read_text())
    assert accuracies["7"] > accuracies["0"] + 0.1, accuracies
