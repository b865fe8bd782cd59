"""The table of what compiled kernels take, as a CSV file that is committed and compared with a later one."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("kernel", "architecture", "registers", "shared", "spilled", "compiler")


class Usage(NamedTuple):
    """What one compiled kernel takes; `fault` says why it is refused, or is empty."""

    kernel: str
    architecture: int
    registers: int
    shared: int
    spilled: int
    fault: str
    compiler: str = ""  # name and version


def write(usages: Iterable[Usage], path: Path) -> None:
    """Write a row for each kernel and architecture, sorted, so that two files can be laid side by side."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(usage, name) for name in COLUMNS] for usage in sorted(usages, key=lambda u: u[:2]))
    temporary.replace(path)


def read(path: Path) -> list[Usage]:
    """Return what `write` wrote; raise ValueError, naming the file, if it is another."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is not a table of kernels: its first line is not {','.join(COLUMNS)}")
        try:
            return [
                Usage(row["kernel"], *(int(row[name]) for name in COLUMNS[1:5]), "", row["compiler"]) for row in rows
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {rows.line_num}: not a row of a table of kernels") from error


def differences(before: Iterable[Usage], now: Iterable[Usage]) -> list[str]:
    """Return a line for each kernel that takes something else than before, is new, or is gone.

    Architectures and compilers of which there is nothing `now` are left out: they were not compiled this time.
    """
    now = list(now)
    compiled = {(usage.architecture, usage.compiler.split(" ")[0]) for usage in now}
    old = {u[:2]: u for u in before if (u.architecture, u.compiler.split(" ")[0]) in compiled}
    new = {usage[:2]: usage for usage in now}
    lines = []
    for key in sorted(old.keys() | new.keys()):
        where = f"{key[0]} (sm_{key[1]})"
        if key not in old:
            lines.append(f"new: {where}: {_takes(new[key])}")
        elif key not in new:
            lines.append(f"gone: {where}")
        elif changes := _changes(old[key], new[key]):
            lines.append(f"changed: {where}: {changes}")
    return lines


def _takes(usage: Usage) -> str:
    return f"{usage.registers} registers, {usage.shared} shared, {usage.spilled} spilled"


def _changes(old: Usage, new: Usage) -> str:
    names = ("registers", "shared", "spilled")
    found = [
        f"{name} {getattr(old, name)} -> {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    if found and old.compiler != new.compiler:
        found.append(f"compiler {old.compiler} -> {new.compiler}")
    return ", ".join(found)
