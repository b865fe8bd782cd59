"""A Flower deployment on the loopback: SuperLink, SuperNodes and runs, as processes that end with this one's `close`.

Nothing leaves the machine: telemetry and update checks are off, and Flower's home is a folder of the caller's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.flower.proxy import CountingProxy

BIN = Path(sys.executable).parent
START = 60.0  # seconds for a SuperLink to answer


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class SuperLink:
    """A SuperLink; `simulated` runs apps in Flower's simulation, else SuperNodes connect (`start_node`)."""

    def __init__(self, home: Path, *, simulated: bool = False) -> None:
        self.home, self.port = home, free_port()
        self.proxies: dict[int, CountingProxy] = {}  # by partition
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._home = home / "flwr"
        self._home.mkdir(parents=True)
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        words = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--disable-runtime-dependency-installation", *(["--simulation"] if simulated else [])]
        self._link = self._start(words, "superlink")
        self._wait_for_link()

    def __enter__(self) -> SuperLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_node(self, partition: int, partitions: int, config: Mapping[str, str] | None = None) -> None:
        """Start the SuperNode of a partition, connected through a counting proxy."""
        if partition not in self.proxies:
            self.proxies[partition] = CountingProxy(self.port)
        pairs = [f"partition-id={partition}", f"num-partitions={partitions}"]
        pairs += [f'{key}="{value}"' for key, value in (config or {}).items()]
        words = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.proxies[partition].port}"]
        words += ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config", " ".join(pairs)]
        self.nodes[partition] = self._start(words, f"supernode-{partition}")

    def kill_node(self, partition: int) -> None:
        """`kill -9` the SuperNode and what it started."""
        _kill(self.nodes.pop(partition))

    def submit(self, app: Path, config: Mapping[str, object], federation: str = "") -> str:
        """Start a run of the app with this run configuration; its id."""
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        words = ["flwr", "run", str(app), "here", "--format", "json", "--run-config", pairs]
        words += ["--federation-config", federation] if federation else []
        printed = self._output(words)
        return str(json.loads(printed[printed.index("{") :])["run-id"])

    def status(self, run: str) -> str:
        """The status of a run as Flower spells it, such as `running` or `finished:completed`."""
        printed = self._output(["flwr", "list", "here", "--run-id", run, "--format", "json"])
        return str(json.loads(printed[printed.index("{") :])["runs"][0]["status"])

    def wait(self, run: str, result: Path, limit: float) -> dict[str, float]:
        """Wait for the JSON file `result` of a run; RuntimeError with the logs' ends if it fails or takes too long."""
        end, asked = time.monotonic() + limit, time.monotonic()
        while not result.exists():
            now = time.monotonic()
            if now > end or (now > asked + 10.0 and self.status(run).startswith("finished") and not result.exists()):
                raise RuntimeError(f"run {run} gave no result: {self.status(run)}\n{self.logs()}")
            asked = now if now > asked + 10.0 else asked
            time.sleep(0.2)
        return dict(json.loads(result.read_text(encoding="utf-8")))

    def logs(self, name: str = "*", tail: int = 4000) -> str:
        """The ends of the processes' logs."""
        paths = sorted(self.home.glob(f"{name}.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-tail:]}" for path in paths)

    def close(self) -> None:
        """End every process, and the proxies."""
        for process in [*self.nodes.values(), self._link]:
            _kill(process)
        for proxy in self.proxies.values():
            proxy.close()

    def _wait_for_link(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end and self._link.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1.0):
                    return
            except OSError:
                time.sleep(0.2)
        logs = self.logs()
        self.close()
        raise RuntimeError(f"the SuperLink does not answer\n{logs}")

    def _environment(self) -> dict[str, str]:
        own = {"FLWR_HOME": str(self._home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        own |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        return {**os.environ, **own}

    def _start(self, words: Sequence[str], name: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [str(BIN / words[0]), *words[1:]], env=self._environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _output(self, words: Sequence[str]) -> str:
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]], env=self._environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started, sessions of their own included, and wait until they are gone.

    Each is stopped before any is killed: who is stopped starts no other, and a child of a dead parent is not found.
    """
    if process.poll() is None:
        stopped: list[int] = []
        while new := [pid for pid in [process.pid, *descendants(process.pid)] if pid not in stopped]:
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            stopped += new
        for pid in stopped:
            _signal(pid, signal.SIGKILL)
        process.wait()
        while any(alive(pid) for pid in stopped):  # a killed process takes a moment to go
            time.sleep(0.01)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found = list(children.get(pid, []))
    for child in found:  # grows on the way
        found += children.get(child, [])
    return found
