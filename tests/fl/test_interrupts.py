"""A run that is interrupted, terminated or killed goes on to the numbers of an unbroken one."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedsynsam.errors import CheckpointError, ConfigError
from fedsynsam.fl.compare import options_of
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.interrupts import Interrupted
from fedsynsam.fl.metrics import RoundMetrics, StepProgress
from fedsynsam.fl.simulation import Simulation

from .conftest import tiny_arrays
from .test_ranks import assert_same_run, rounds_written, wait_for_rounds


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(tiny_config: RunConfig, tmp_path, number, code) -> None:
    config = tiny_config.replace(rounds=1000, eval_every=100, checkpoint_every=1000)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Simulation(config, whole).run()
    words = [sys.executable, "-m", "fedsynsam", "run", *options_of(config.to_dict()), "--out", str(broken)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for_rounds(process, broken, 5)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code, printed
    last = printed.splitlines()[-1]
    assert last == f"fedsynsam: interrupted: go on with the same command and --out {broken} --resume"
    assert "Traceback" not in printed
    done = rounds_written(broken)
    assert 5 <= done < 1000

    resumed: list[int] = []
    Simulation(config, broken, resume=True).run(lambda row: resumed.append(row.round))
    assert resumed[0] == done + 1, "nothing that was finished is run again"
    assert_same_run(whole, broken)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_comparison_ends_its_runs_with_itself(tiny_config: RunConfig, tmp_path, number, code) -> None:
    options = options_of(tiny_config.replace(rounds=3000, eval_every=1000, checkpoint_every=1000).to_dict())
    lists = {"--algorithm": "--algorithms", "--compressor": "--compressors"}
    words = [sys.executable, "-m", "fedsynsam", "compare", *(lists.get(word, word) for word in options)]
    words += ["--seeds", "2", "--jobs", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    cells = [tmp_path / "fedavg" / "topk-0.1" / f"seed-{seed}" for seed in (0, 1)]
    try:
        for cell in cells:
            wait_for_rounds(process, cell, 2)
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # nobody is left of its session
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, printed
    assert printed.splitlines()[-1] == "fedsynsam: interrupted: repeat the same command to go on"
    for cell in cells:
        assert (cell / "checkpoint").is_dir()
        assert 2 <= rounds_written(cell) < 3000


@pytest.mark.parametrize("stage", ["round", "synthesis"])
def test_an_abandoned_round_is_run_again_to_the_same_numbers(tiny_config: RunConfig, tmp_path, stage) -> None:
    config = tiny_config.replace(algorithm="fedsynsam", checkpoint_every=1000)
    Simulation(config, tmp_path / "whole").run()

    def on_round(row: RoundMetrics) -> None:
        if stage == "round" and row.round == 3:
            signal.raise_signal(signal.SIGTERM)

    def on_step(step: StepProgress) -> None:
        if stage == "synthesis" and step.round == 4 and step.done == 1:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        Simulation(config, tmp_path / "broken").run(on_round, on_step)
    assert caught.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert rounds_written(tmp_path / "broken") == (3 if stage == "round" else 4)
    Simulation(config, tmp_path / "broken", resume=True).run()
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_signal_between_synthesis_and_the_end_of_its_round(tiny_config: RunConfig, tmp_path) -> None:
    """The set is in the checkpoint then, and must neither be learned again nor count as sent."""
    config = tiny_config.replace(algorithm="fedsynsam", checkpoint_every=1000, participation=1.0)
    Simulation(config, tmp_path / "whole").run()

    def on_step(step: StepProgress) -> None:
        if step.round == 4 and step.done == step.total:
            simulation._interrupts.signum = signal.SIGINT  # seen by the first client

    simulation = Simulation(config, tmp_path / "broken")
    with pytest.raises(Interrupted):
        simulation.run(on_step=on_step)
    learned: list[int] = []
    Simulation(config, tmp_path / "broken", resume=True).run(on_step=lambda step: learned.append(step.round))
    assert 4 not in learned
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_without_checkpoints_a_signal_leaves_none(tiny_config: RunConfig, tmp_path) -> None:
    def on_round(row: RoundMetrics) -> None:
        if row.round == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        Simulation(tiny_config.replace(checkpoint_every=0), tmp_path / "run").run(on_round)
    assert not (tmp_path / "run" / "checkpoint").exists()


KILLER = """
import json, os, random, sys, time
from pathlib import Path
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.simulation import Simulation

config, out, kills = RunConfig.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
last = config.rounds - 1
file, rng = out / "metrics.jsonl", random.Random(config.seed)
rounds = lambda: file.read_bytes().count(b"\\n") if file.exists() else 0
killed = 0
while True:
    child = os.fork()
    if child == 0:
        resume = (out / "config.json").exists()
        pause = lambda row: time.sleep(60 if killed < kills and row.round == last else 0)  # until it is killed
        Simulation(config, out, resume=resume).run(pause)
        os._exit(0)
    ended, code = 0, 0
    if killed < kills:
        more = rng.randrange(12)
        goal = min(rounds() + more, last)
        end = time.monotonic() + 60
        while rounds() < goal and not ended and time.monotonic() < end:
            ended, code = os.waitpid(child, os.WNOHANG)
        time.sleep(rng.random() * (0.02 if more else 0.2))  # in the middle of rounds and checkpoints, or of the start
        if not ended:
            os.kill(child, 9)
            killed += 1
    if not ended:
        ended, code = os.waitpid(child, 0)
    if os.WIFEXITED(code):
        sys.exit(os.WEXITSTATUS(code) or (0 if killed == kills else 9))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that each attempt need not import PyTorch")
@pytest.mark.parametrize(("algorithm", "store"), [("fedsynsam", "host"), ("fedlesam-d", "disk"), ("fedsmoo", "host")])
def test_killed_twenty_times_a_run_ends_the_same(tiny_config: RunConfig, tmp_path, algorithm, store) -> None:
    changes = {"residual_store": store, "rounds": 300, "eval_every": 20, "checkpoint_every": 3, "synthetic_every": 40}
    config = tiny_config.replace(algorithm=algorithm, **changes)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Simulation(config, whole).run()
    words = [sys.executable, "-c", KILLER, json.dumps(config.to_dict()), str(broken), "20"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, broken)
    assert json.loads((broken / "summary.json").read_text())["rounds"] == 300


def test_a_line_cut_off_by_a_crash_is_repaired_and_other_damage_is_named(tiny_config: RunConfig, tmp_path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Simulation(tiny_config, whole).run()
    Simulation(tiny_config, broken).run()
    file = broken / "metrics.jsonl"
    content = file.read_text()
    for rest in (b'{"round": 7, "train_l', b"\0\0\0\n", b"\xff\n", content.encode()):  # of rounds after the checkpoint
        file.write_bytes(content.encode() + rest)
        Simulation(tiny_config, broken, resume=True).run()
        assert_same_run(whole, broken)
    for damaged, message in (
        (content[1:], "is damaged"),
        (content[: content.index("\n") + 1], "lacks some of the 6 rounds"),
    ):
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=message) as caught:
            Simulation(tiny_config, broken, resume=True).run()
        assert str(file) in str(caught.value)


def test_rounds_that_are_twice_there_are_damage(tiny_config: RunConfig, tmp_path) -> None:
    Simulation(tiny_config, tmp_path / "run").run()
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:3], lines[1], *lines[4:]]))
    with pytest.raises(CheckpointError, match="lacks some of the 6 rounds"):
        Simulation(tiny_config, tmp_path / "run", resume=True).run()


def test_without_a_checkpoint_a_run_begins_again_unless_it_was_finished(tiny_config: RunConfig, tmp_path) -> None:
    config, notes, out = tiny_config.replace(checkpoint_every=0), list[str](), tmp_path / "run"
    Simulation(config, out).run()
    before = (out / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match="holds a finished run and no checkpoint"):
        Simulation(config, out, resume=True).run()
    assert (out / "metrics.jsonl").read_text() == before
    (out / "summary.json").unlink()
    Simulation(config, out, resume=True).run(on_note=notes.append)
    assert any("no checkpoint yet: the run begins again" in note for note in notes)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == config.rounds


def test_one_process_at_a_time_writes_a_folder(tiny_config: RunConfig, tmp_path) -> None:
    out = tmp_path / "run"
    begun = Simulation(tiny_config, out)

    def start_again(metrics: RoundMetrics) -> None:
        for resume in (False, True):
            with pytest.raises(ConfigError, match="another process is writing the run"):
                Simulation(tiny_config, out, resume=resume).run()

    assert len(begun.run(on_round=start_again).rounds) == tiny_config.rounds
    Simulation(tiny_config, out, resume=True).run()  # it is free now


def test_a_run_goes_on_with_the_data_that_it_began_with(tiny_config: RunConfig, tmp_path) -> None:
    Simulation(tiny_config, tmp_path / "run").run()
    np.savez(tiny_config.dataset, **tiny_arrays(seed=1))
    with pytest.raises(ConfigError, match=r"dataset: .*tiny\.npz' holds other data than when the run"):
        Simulation(tiny_config, tmp_path / "run", resume=True).run()


def test_a_damaged_file_of_a_checkpoint_is_named(tiny_config: RunConfig, tmp_path) -> None:
    config = tiny_config.replace(algorithm="fedlesam", participation=1.0)
    for kind in ("state", "client", "weights"):
        out = tmp_path / kind
        Simulation(config.replace(rounds=2), out).run()
        stored = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**stored, "rounds": 6}))  # as if it had been interrupted
        file = next((out / "checkpoint").glob(f"{kind}*"))
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]
        for damaged in (flipped, content[:-10], b"", None):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            if kind == "state" and damaged is None:
                continue  # then there is no checkpoint, and the run starts at its beginning
            with pytest.raises(CheckpointError, match=r"is damaged|is missing|cannot be read") as caught:
                Simulation(config, out, resume=True).run()
            assert str(file) in str(caught.value)


def test_a_run_killed_before_its_first_file_was_whole_can_be_started(tiny_config: RunConfig, tmp_path) -> None:
    (tmp_path / "config.json.part").write_text("{")
    Simulation(tiny_config, tmp_path / "run").run()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json.part").write_text("{")
    Simulation(tiny_config, tmp_path / "begun").run()
    assert_same_run(tmp_path / "run", tmp_path / "begun")


def test_files_of_others_are_left_alone(tiny_config: RunConfig, tmp_path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "film.part").write_text("half")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        Simulation(tiny_config, tmp_path / "theirs").run()
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["film.part"]


def test_checkpoints_write_only_what_changed(tiny_config: RunConfig, tmp_path) -> None:
    config = tiny_config.replace(clients=24, participation=1 / 24, checkpoint_every=1, rounds=8, alpha=100.0)
    stamps: list[dict[str, int]] = []

    def on_round(row: RoundMetrics) -> None:
        time.sleep(0.01)
        stamps.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoint").iterdir()})

    Simulation(config, tmp_path / "run").run(on_round)
    for before, after in itertools.pairwise(stamps):
        assert len([name for name in after if before.get(name) != after[name]]) == 2, "one client's file, and the state"
