"""Several processes share a run: the numbers are those of one, whatever their number, and a lost one ends it well."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsynsam.cli import PATIENCE_SECONDS, main
from fedsynsam.errors import ConfigError, NonFiniteError
from fedsynsam.fl.compare import options_of
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import dataset_from_arrays
from fedsynsam.fl.distributed import Group
from fedsynsam.fl.records import assign
from fedsynsam.fl.simulation import Simulation

from .conftest import tiny_arrays
from .test_simulation import EVERY_CHOICE, lines


class ThreadGroup(Group):
    """Ranks that are threads: as several processes, but started in no time."""

    def __init__(self, rank: int, size: int, mail: dict[tuple[int, int], queue.Queue]) -> None:
        self.rank, self.size, self._mail = rank, size, mail

    def send(self, blob: bytes, rank: int) -> None:
        self._mail[self.rank, rank].put(blob)

    def receive(self, rank: int) -> bytes:
        return self._mail[rank, self.rank].get(timeout=60)

    def all_gather(self, blob: bytes) -> list[bytes]:
        for rank in range(self.size):
            self.send(blob, rank)
        return [self.receive(rank) for rank in range(self.size)]

    def broadcast(self, blob: bytes) -> bytes:
        return self.all_gather(blob)[0]


def in_threads(size: int, work: Callable[[Group], object]) -> list[object]:
    """What `work` returned or raised on each of `size` ranks."""
    mail = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    results: list[object] = [None] * size

    def call(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(rank, size, mail))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(1)
    return results


def files(folder: Path) -> dict[str, bytes]:
    """The checkpoint: weights, residuals, synthetic set, tables."""
    return {path.name: path.read_bytes() for path in sorted((folder / "checkpoint").iterdir())}


def assert_same_run(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    assert files(one) == files(other)


@pytest.mark.parametrize("algorithm", EVERY_CHOICE)
def test_the_number_of_ranks_changes_no_bit(tiny_config: RunConfig, tmp_path, algorithm) -> None:
    config = tiny_config.replace(algorithm=algorithm, cosines=True, sharpness=True)
    Simulation(config, tmp_path / "1").run()
    for size in (2, 3, 4):  # the cohort has three clients
        results = in_threads(size, lambda group: Simulation(config, tmp_path / str(group.size), group=group).run())
        assert not [result for result in results if isinstance(result, Exception)]
        assert_same_run(tmp_path / "1", tmp_path / str(size))


@pytest.mark.parametrize("options", [{"encode": False}, {"residual_store": "disk"}, {"compressor": "quantize:2"}])
def test_ranks_with_other_settings(tiny_config: RunConfig, tmp_path, options) -> None:
    config = tiny_config.replace(**options)
    Simulation(config, tmp_path / "1").run()
    in_threads(2, lambda group: Simulation(config, tmp_path / "2", group=group).run())
    assert_same_run(tmp_path / "1", tmp_path / "2")
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == sorted(
        path.name for path in (tmp_path / "1").iterdir()
    )


def test_an_error_on_one_rank_is_raised_on_all(tiny_config: RunConfig, tmp_path) -> None:
    config = tiny_config.replace(lr=1e30)
    results = in_threads(2, lambda group: Simulation(config, tmp_path / "run", group=group).run())
    assert [type(result) for result in results] == [NonFiniteError, NonFiniteError]
    results = in_threads(2, lambda group: Simulation(config, tmp_path / "run", group=group).run())
    assert ["already holds a run" in str(result) for result in results] == [True, True]


def test_a_refused_run_leaves_the_folder_as_it_was(tiny_config: RunConfig, tmp_path) -> None:
    (tmp_path / "mine" / "rank-1").mkdir(parents=True)
    (tmp_path / "mine" / "rank-1" / "data.txt").write_text("kept")
    results = in_threads(2, lambda group: Simulation(tiny_config, tmp_path / "mine", group=group).run())
    assert ["is not empty and holds no run" in str(result) for result in results] == [True, True]
    assert (tmp_path / "mine" / "rank-1" / "data.txt").read_text() == "kept"


def test_ranks_with_different_data_are_refused(tiny_config: RunConfig, monkeypatch) -> None:
    """The same name on two machines, with other contents."""
    here = threading.local()
    monkeypatch.setattr(
        "fedsynsam.fl.simulation.load_dataset", lambda *_: dataset_from_arrays("tiny", tiny_arrays(seed=here.rank))
    )

    def work(group: Group) -> object:
        here.rank = group.rank
        return Simulation(tiny_config, group=group).run()

    results = in_threads(2, work)
    assert [type(result) for result in results] == [ConfigError, ConfigError]
    assert ["dataset_crc32: rank 0 was given" in str(result) for result in results] == [True, True]


def test_ranks_with_different_options_are_refused(tiny_config: RunConfig) -> None:
    results = in_threads(2, lambda group: Simulation(tiny_config.replace(lr=0.1 + group.rank), group=group).run())
    assert [type(result) for result in results] == [ConfigError, ConfigError]
    assert str(results[0]) == "lr: rank 0 was given 0.1, rank 1 1.1"


def test_commands_that_do_not_share_work_refuse_torchrun(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare"]) == 2
    assert capsys.readouterr().err.endswith("only run can use them, not compare\n")
    monkeypatch.setenv("RANK", "1")
    waits = list[float]()
    monkeypatch.setattr("fedsynsam.cli.time.sleep", waits.append)
    assert main(["compare"]) == 2
    assert "error: rank 1: torchrun" in capsys.readouterr().err
    assert waits == [PATIENCE_SECONDS], "it is ended meanwhile if rank 0 speaks for all"


def test_clients_stay_where_they_are_as_long_as_the_load_is_even() -> None:
    assert assign([1, 5, 8], {}, 2) == [0, 1, 0]
    assert assign([1, 5, 8], {1: 1, 5: 0, 8: 1}, 2) == [1, 0, 1]
    assert assign([1, 5, 8], {1: 1, 5: 1, 8: 1}, 2) == [1, 1, 0]  # two at most: the third moves
    assert assign([3], {}, 4) == [0]
    for ranks in range(1, 8):
        loads = [assign(list(range(10)), dict.fromkeys(range(10), 0), ranks).count(rank) for rank in range(ranks)]
        assert sum(loads) == 10
        assert max(loads) == -(-10 // ranks)


def torchrun(
    size: int, config: RunConfig, out: Path, *more: str, program: Sequence[str] = ("-m", "fedsynsam"), **options: Any
) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    words += [*program, "run", *options_of(config.to_dict()), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    )


def rounds_written(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for_rounds(process: subprocess.Popen[str], out: Path, count: int) -> None:
    end = time.monotonic() + 120
    while rounds_written(out) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert process.poll() is None
    assert rounds_written(out) >= count


def process_of_rank(rank: int, out: Path) -> int:
    """The process id of a rank that torchrun started for the run in `out`."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((path / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if str(out).encode() in words and f"RANK={rank}".encode() in environment:
            return int(path.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_processes_over_gloo_change_no_bit(tiny_config: RunConfig, tmp_path) -> None:
    config = tiny_config.replace(algorithm="fedsynsam", cosines=True)
    assert main(["run", *options_of(config.to_dict()), "--out", str(tmp_path / "alone")]) == 0
    for size in (1, 2, 3, 4):  # the cohort has three clients
        printed, _ = (process := torchrun(size, config, tmp_path / str(size))).communicate(timeout=300)
        assert process.returncode == 0, printed
        assert printed.count("accuracy, last round") == printed.count("residuals: ") == 1, "rank 0 alone prints"
        assert_same_run(tmp_path / "alone", tmp_path / str(size))


@pytest.mark.slow
def test_what_is_wrong_on_one_rank_alone_is_told(tiny_config: RunConfig, tmp_path) -> None:
    for rank in (0, 1):
        (tmp_path / f"machine-{rank}").mkdir()
    (tmp_path / "machine-0" / "data.npz").write_bytes(Path(tiny_config.dataset).read_bytes())
    script = "import os, sys\nos.chdir('machine-' + os.environ['RANK'])\n"
    script += "from fedsynsam.cli import main\nsys.exit(main())"
    (tmp_path / "elsewhere.py").write_text(script)
    process = torchrun(
        2, tiny_config.replace(dataset="data.npz"), tmp_path / "out", program=["elsewhere.py"], cwd=tmp_path
    )
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "fedsynsam: error: rank 1: data.npz does not exist" in printed, printed
    assert "--resume" not in printed, "there is nothing to go on with"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes of ranks in /proc")
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_run_which_goes_on_with_other_numbers_of_them(tiny_config, tmp_path, lost) -> None:
    config = tiny_config.replace(rounds=400, eval_every=50, algorithm="fedlesam-s", checkpoint_every=7)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Simulation(config, whole).run()

    process = torchrun(2, config, broken)
    wait_for_rounds(process, broken, 20)
    os.kill(process_of_rank(lost, broken), signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(re.findall("fedsynsam: error:", printed)) == 1, printed
    assert f"fedsynsam: error: rank {lost} of 2 is gone; go on with the same command and --out" in printed

    process = torchrun(3, config, broken, "--resume")
    wait_for_rounds(process, broken, rounds_written(broken) + 20)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(re.findall("fedsynsam: interrupted: go on with", printed)) == 1, printed
    assert 20 < rounds_written(broken) < 400

    Simulation(config, broken, resume=True).run()
    assert_same_run(whole, broken)
