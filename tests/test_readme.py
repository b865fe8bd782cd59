"""The README keeps its word: its snippets run, its commands and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedsynsam.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number: int) -> None:
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), {})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 2


def test_commands_exist() -> None:
    named = set(re.findall(r"\.venv/bin/fedsynsam (\w+)", (ROOT / "README.md").read_text()))
    assert named <= set(COMMANDS)
    assert named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [name for name in targets if "://" not in name and not (page.parent / name).exists()]
    assert not missing
