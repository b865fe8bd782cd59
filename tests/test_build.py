"""The build of the extension where something is missing: a compiler, OpenMP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path, **environment: str) -> dict[str, object]:
    """Build in place in `folder`, and return what the build wrote down."""
    settings = {"FEDSYNSAM_CUDA": "0", "FEDSYNSAM_REQUIRE_EXTENSION": "0", **environment}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder, env={**os.environ, **settings}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    record: dict[str, object] = json.loads((folder / "fedsynsam" / "_build.json").read_text())
    return record


def test_a_build_that_fails_leaves_no_older_library(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "fedsynsam").mkdir()
    older = tmp_path / "fedsynsam" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    older.write_bytes(b"an older build")
    record = build(tmp_path, CC="no-compiler", CXX="no-compiler")
    assert record["extension"] is False
    assert not older.exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_what_runs_in_parallel_compiles_without_openmp(tmp_path: Path) -> None:
    program = tmp_path / "program.cpp"
    program.write_text(
        '#include <cstdio>\n#include "cpu/parallel.h"\n'
        "int main() {\n  long sum = 0;\n"
        "  fedsynsam::parallel_for(5, 3, 2, [&](int64_t i, int thread) { sum += i + 100 * thread; });\n"
        '  std::printf("%ld %d", sum, fedsynsam::thread_number());\n}\n'
    )
    command = ["g++", "-std=c++17", f"-I{ROOT / 'csrc'}", str(program), "-o", str(tmp_path / "program")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    done = subprocess.run([str(tmp_path / "program")], check=True, capture_output=True, text=True)
    assert done.stdout == "10 0"
