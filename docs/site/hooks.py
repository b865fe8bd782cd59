"""Takes the results and examples that pages link to, which lie outside docs/, into the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"\]\(\.\./((?:benchmarks|examples)/[^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add every file that a page links to."""
    linked = {path for page in (ROOT / "docs").glob("*.md") for path in OUTSIDE.findall(page.read_text())}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links at the copies."""
    return OUTSIDE.sub(r"](\1", markdown)
