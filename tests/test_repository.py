"""The checkout itself: nothing of one machine in it, and its lists of packages and versions agree."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csrc", "fedsynsam", "kernels", "benchmarks", "tests", "docs", "examples", ".ci")
SUFFIXES = {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".cu", ".csv", ".in", ".yml", ".json", ""}

# In two halves, so that this file does not find itself.
FORBIDDEN = re.compile(
    "|".join(
        [
            r"(?<![\w.])/(?:ro" + r"ot|ho" + r"me|work|tmp|opt|Users|mnt)/\w",
            "/usr/lo" + "cal/",
            r"[A-Z]:\\\\?Us" + "ers",
            r"py"
            + r"pi\.org|python"
            + r"hosted\.org|download\.py"
            + r"torch\.org|deb\.deb"
            + r"ian\.org|npm"
            + r"js\.",
        ]
    )
)


def text_files() -> Iterator[Path]:
    """Yield the project's own text files, not what a build or a run left behind."""
    for path in [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]:
        skipped = {"__pycache__", "work", "corpus"} & set(path.relative_to(ROOT).parts)
        if path.is_file() and path.suffix in SUFFIXES and not skipped and not path.name.startswith(".git"):
            yield path


def test_no_path_of_a_machine_and_no_registry_host() -> None:
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if FORBIDDEN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    "line", ["open('/ro" + "ot/x')", "--index-url https://py" + "pi.org/simple", "/usr/lo" + "cal/cuda"]
)
def test_a_path_of_a_machine_would_be_found(line: str) -> None:
    assert FORBIDDEN.search(line)


def test_every_python_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [path.parent for top in ("fedsynsam", "kernels") for path in (ROOT / top).rglob("__init__.py")]
    names = {".".join(folder.relative_to(ROOT).parts).replace("kernels", "fedsynsam.kernels", 1) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == names


def test_constraints_pin_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
        *project["optional-dependencies"]["dev"],
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.split(r"==", line)[0].lower() for line in lines if "==" in line and not line.startswith("#")}
    assert {re.split(r"[><=; \[]", item)[0].lower() for item in asked} <= pinned


def test_files_stay_short() -> None:
    """A file holds one idea: about 300 lines; one that passes 400 holds two."""
    sources = [
        path for path in text_files() if path.suffix in (".py", ".cpp", ".h", ".cu") and "tests" not in path.parts
    ]
    long = {str(path.relative_to(ROOT)): n for path in sources if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_pages_link_to_files_outside_docs_that_exist() -> None:
    """The site takes in each of them, so a folder or a missing file would break it."""
    link = re.compile(r"\]\(\.\./((?:benchmarks|examples)/[^)#\s]+)")
    linked = {(page.name, path) for page in (ROOT / "docs").glob("*.md") for path in link.findall(page.read_text())}
    assert len(linked) > 20
    assert [(page, path) for page, path in sorted(linked) if not (ROOT / path).is_file()] == []
