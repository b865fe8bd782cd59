"""The benchmark against other frameworks asks all of them for the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import round as rounds
from benchmarks.peers.job import Job
from benchmarks.peers.memory import run

ROOT = Path(__file__).resolve().parent.parent


def final(peer: str, folder: Path, cores: int = 1) -> dict:
    """Run two rounds and one more of the job; return what it reports."""
    job = Job(cohort=10, warmup=1, timed=1, cores=cores, result=folder / f"{peer}.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*rounds.command(peer, folder, cores), *job.arguments()]
    subprocess.run(words, check=True, env=environment, cwd=ROOT)
    return json.loads(job.result.read_text(encoding="utf-8"))


def test_the_simulator_and_the_eager_loop_do_the_same_work(tmp_path: Path) -> None:
    own, eager, ranks = final("fedsynsam", tmp_path), final("eager", tmp_path), final("fedsynsam-ranks", tmp_path, 2)
    assert len(own["seconds"]) == len(eager["seconds"]) == len(ranks["seconds"]) == 1
    assert ranks["test_loss"] == own["test_loss"]
    # the same batches in the same order: only the order of sums differs
    assert own["test_loss"] == pytest.approx(eager["test_loss"], rel=1e-3)


def test_arguments_survive_the_command_line() -> None:
    job = Job(cohort=50, warmup=3, timed=7, cores=2, result=Path("result.json"))
    assert Job.parse(job.arguments()) == job


def test_a_row_has_the_fastest_repetition_and_the_goal() -> None:
    def result(seconds: float) -> dict:
        facts = {"peak_bytes": 2**20, "test_accuracy": 0.5, "test_loss": 1.0, "versions": {}}
        return {"seconds": [seconds, seconds], **facts}

    rows = [
        rounds.summary("fedsynsam", 10, [result(1.0), result(0.5)]),
        rounds.summary("fedsynsam-ranks", 10, [result(0.8)]),
        rounds.summary("flower", 10, [result(2.0), result(4.0)]),
        rounds.summary("flower", 50, [result(2.0)]),
    ]
    rounds.compare(rows)
    assert [row["rounds_per_second"] for row in rows] == ["2", "1.25", "0.5", "0.5"]
    assert (rows[2]["fedsynsam_times_faster"], rows[2]["fedsynsam-ranks_times_faster"]) == ("4.000", "2.500")
    assert (rows[2]["goal"], rows[2]["met"]) == (3.0, "yes")
    assert "met" not in rows[3], "nothing of ours with that cohort"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_is_that_of_the_whole_process_tree(tmp_path: Path) -> None:
    child = "import time; block = bytearray(b'x' * 100_000_000); time.sleep(1.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    cores = sorted(os.sched_getaffinity(0))
    status, peak = run([sys.executable, "-c", parent], os.environ, tmp_path / "log", cores, 60)
    assert status == 0
    assert 100e6 < peak < 300e6
