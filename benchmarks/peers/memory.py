"""The memory that a command and everything it starts take together."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL = 0.2  # seconds between looks


def run(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cores: Sequence[int], seconds: float
) -> tuple[int, int]:
    """Run `command` on `cores`; return its exit status and the peak of its process tree's resident bytes.

    Pages that processes share are counted in each of them. What the command left running is ended.
    Raises `subprocess.TimeoutExpired` after `seconds`.
    """
    peak, stop, seen = 0, threading.Event(), {}

    def watch(root: int) -> None:
        nonlocal peak
        while not stop.wait(INTERVAL):
            seen.update(family(root, seen))
            peak = max(peak, sum(resident(pid) for pid, born in seen.items() if stat(pid)[1:2] == [born]))

    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        watcher = threading.Thread(target=watch, args=(process.pid,))
        watcher.start()
        try:
            status = process.wait(timeout=seconds)
        finally:
            stop.set()
            watcher.join()
            process.kill()
            for pid, born in seen.items():
                if pid != process.pid and stat(pid)[1:2] == [born]:
                    os.kill(pid, 9)
            process.wait()
    return status, peak


def stat(pid: int) -> list[str]:
    """Parent and time of birth of a process; empty when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else [fields[1], fields[19]]


def family(root: int, known: Mapping[int, str]) -> dict[int, str]:
    """{pid: time of birth} of `root`, of all `known` processes that still live, and of their descendants."""
    living = {int(path.name): facts for path in Path("/proc").glob("[0-9]*") if (facts := stat(int(path.name)))}
    found = {pid for pid, (_, born) in living.items() if pid == root or known.get(pid) == born}
    while more := {pid for pid, (parent, _) in living.items() if int(parent) in found} - found:
        found |= more
    return {pid: living[pid][1] for pid in found}


def resident(pid: int) -> int:
    """Resident bytes of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * PAGE
    except OSError:
        return 0
