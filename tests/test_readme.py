"""The README and the pages of docs/ keep their word: their snippets run, their commands and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedsynsam.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if SNIPPETS[page]], ids=lambda page: page.name)
def test_snippets_run(page: Path) -> None:
    """In order, the later ones of a page after the earlier ones."""
    if page.name == "flower.md":
        pytest.importorskip("flwr", reason="Flower is not installed; .ci/run has an environment with it")
    names: dict[str, object] = {}
    for number, snippet in enumerate(SNIPPETS[page], start=1):
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), names)


def test_there_are_snippets() -> None:
    assert len(SNIPPETS[ROOT / "README.md"]) == 2
    assert sum(map(bool, SNIPPETS.values())) >= 4


def test_commands_exist() -> None:
    named = set(re.findall(r"\.venv/bin/fedsynsam (\w+)", (ROOT / "README.md").read_text()))
    assert named <= set(COMMANDS)
    assert named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [name for name in targets if "://" not in name and not (page.parent / name).exists()]
    assert not missing
