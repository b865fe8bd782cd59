"""Whole small runs: the same for any number of threads and after a resume, honest about bytes, and refusing clearly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from fedsynsam.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import load_dataset
from fedsynsam.fl.flat import FlatModel
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.fl.models import build_model
from fedsynsam.fl.runfolder import load_config
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.streams import WEIGHTS, number

# presets that together make every choice of perturbation, correction and server step
EVERY_CHOICE = (
    "fedsynsam-s",
    "fedlesam-d",
    "mofedsam",
    "fedsmoo",
    "fedgloss",
    "dynafed",
    "fedprox",
    "realset",
    "oracle",
)


class Interrupted(Exception):
    pass


def lines(folder: Path) -> list[dict]:
    """`metrics.jsonl` without the times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]


@pytest.mark.parametrize("algorithm", EVERY_CHOICE)
def test_threads_do_not_change_a_byte(tiny_config: RunConfig, tmp_path, algorithm) -> None:
    config = tiny_config.replace(algorithm=algorithm, cosines=True)
    for threads in (1, 2, 3):
        Simulation(config.replace(threads=threads), tmp_path / str(threads)).run()
    assert lines(tmp_path / "1") == lines(tmp_path / "2") == lines(tmp_path / "3")


@pytest.mark.parametrize(
    ("algorithm", "stop"),
    [
        *[(name, stop) for name in ("fedsynsam", "fedlesam", "fedavg") for stop in (1, 3, 5)],
        *[(name, 3) for name in ("fedsynsam-s", "fedsmoo", "mofedsam", "fedgloss", "dynafed")],
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(tiny_config: RunConfig, tmp_path, algorithm, stop) -> None:
    config = tiny_config.replace(algorithm=algorithm, cosines=True)

    def interrupt(row: RoundMetrics) -> None:
        if row.round == stop:
            raise Interrupted

    whole = Simulation(config, tmp_path / "whole").run()
    with pytest.raises(Interrupted):
        Simulation(config, tmp_path / "broken").run(interrupt)
    assert len(lines(tmp_path / "broken")) == stop
    resumed = Simulation(config, tmp_path / "broken", resume=True).run()
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")
    same = [key for key in whole.summary if key != "seconds"]
    assert [whole.summary[key] for key in same] == [resumed.summary[key] for key in same]


def test_resuming_a_finished_run_changes_nothing(tiny_config: RunConfig, tmp_path) -> None:
    Simulation(tiny_config, tmp_path / "run").run()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    Simulation(tiny_config, tmp_path / "run", resume=True).run()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_one_client_without_compression_is_plain_gradient_descent(tiny_config: RunConfig) -> None:
    options = {"compressor": "none", "clients": 1, "participation": 1.0, "batch_size": 240, "partition": "iid"}
    config = tiny_config.replace(**options, local_steps=3, rounds=4, eval_every=4)
    result = Simulation(config).run()
    dataset = load_dataset(config.dataset)
    module = build_model("mlp", dataset.image_shape, dataset.classes, number(config.seed, WEIGHTS))
    model = FlatModel(module, torch.device("cpu"))
    for _ in range(12):
        model.backward((dataset.x_train[:], dataset.y_train))
        model.weights -= config.lr * model.gradient
    with torch.no_grad():
        loss = functional.cross_entropy(model.module(dataset.x_test[:]), dataset.y_test)
    # the order of examples in a batch and the sums of updates round differently
    assert result.rounds[-1].test_loss == pytest.approx(float(loss), rel=1e-5)


def test_the_run_learns(tiny_config: RunConfig) -> None:
    rows = Simulation(tiny_config.replace(rounds=30, partition="iid", eval_every=1, lr=0.02)).run().rounds
    assert rows[-1].test_accuracy > 0.9
    assert rows[-1].test_loss < 0.6 * rows[0].test_loss
    assert rows[-1].train_loss < 0.6 * rows[0].train_loss


def test_bytes_are_lengths_of_payloads(tiny_config: RunConfig) -> None:
    parameters, cohort = 4_355, 3
    sent = Simulation(tiny_config).run()
    held = Simulation(tiny_config.replace(encode=False)).run()
    assert [row.uplink_bytes for row in sent.rounds] == [row.uplink_bytes for row in held.rounds]
    assert [row.train_loss for row in sent.rounds] == [row.train_loss for row in held.rounds]
    assert all(row.downlink_bytes == 4 * parameters * cohort for row in sent.rounds)
    kept = round(0.1 * parameters)
    least = cohort * (4 * kept + kept * 2 / 8)  # values and, at the very least, two bits an index
    assert all(least < row.uplink_bytes < 4 * parameters * cohort / 5 for row in sent.rounds)
    assert sent.summary["uplink_bytes"] == sum(row.uplink_bytes for row in sent.rounds)
    assert sent.summary["dense_uplink_bytes"] == 6 * 4 * parameters * cohort
    dense = Simulation(tiny_config.replace(compressor="none", rounds=1)).run().rounds[0]
    assert 4 * parameters * cohort <= dense.uplink_bytes < 4 * parameters * cohort + cohort * 400


def test_the_synthetic_set_is_broadcast_once_to_each_client_that_lacks_it(tiny_config: RunConfig) -> None:
    config = tiny_config.replace(algorithm="fedsynsam", participation=1.0, synthetic_every=3)
    rows = Simulation(config).run().rounds
    dense, broadcast = 6 * 4 * 4_355, 6 * 4 * (6 * 64 + 6 * 3)
    assert [row.downlink_bytes - dense for row in rows] == [0, 0, broadcast, 0, 0, broadcast]


def test_fedsynsam_is_fedavg_until_its_set_exists(tiny_config: RunConfig) -> None:
    synthetic = Simulation(tiny_config.replace(algorithm="fedsynsam")).run().rounds
    plain = Simulation(tiny_config).run().rounds
    losses = [(a.train_loss, b.train_loss) for a, b in zip(synthetic, plain, strict=True)]
    assert all(a == b for a, b in losses[:2])
    assert all(a != b for a, b in losses[2:])


def test_seeds_give_different_runs(tiny_config: RunConfig) -> None:
    assert Simulation(tiny_config).run().rounds[0] != Simulation(tiny_config.replace(seed=1)).run().rounds[0]


def test_the_run_folder(tiny_config: RunConfig, tmp_path) -> None:
    out = tmp_path / "deep" / "run"
    seen: list[RoundMetrics] = []
    result = Simulation(tiny_config.replace(algorithm="fedsam"), out).run(seen.append)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "config.json", "metrics.jsonl", "summary.json"]
    stored = json.loads((out / "config.json").read_text())
    assert stored["rho"] == 0.05  # resolved
    assert set(stored["versions"]) == {"fedsynsam", "python", "torch", "numpy", "commit"}
    assert load_config(out) == result.config
    assert [RoundMetrics.from_json(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == seen
    assert [row.round for row in seen] == [1, 2, 3, 4, 5, 6]
    assert [row.round for row in seen if row.test_accuracy is not None] == [2, 4, 6]
    assert json.loads((out / "summary.json").read_text()) == result.summary
    late = [row.test_accuracy for row in seen if row.round in (4, 6)]  # the last fifth begins at round 4 = 6 − ⌈6/5⌉
    assert result.summary["final_accuracy"] == pytest.approx(np.mean(late))


def test_threads_of_pytorch_are_as_before(tiny_config: RunConfig) -> None:
    torch.set_num_threads(2)
    Simulation(tiny_config.replace(rounds=1)).run()
    assert torch.get_num_threads() == 2


def test_sharpness_is_logged(tiny_config: RunConfig) -> None:
    result = Simulation(tiny_config.replace(sharpness=True)).run()
    assert result.rounds[-1].sharpness is not None
    assert result.summary["sharpness"] == result.rounds[-1].sharpness
    assert Simulation(tiny_config).run().summary["sharpness"] is None


def test_cosines_name_the_estimators(tiny_config: RunConfig) -> None:
    rows = Simulation(tiny_config.replace(algorithm="fedsynsam", cosines=True)).run().rounds
    assert rows[0].cosines is None
    assert set(rows[1].cosines) == {"drift", "local", "previous", "real"}
    assert set(rows[3].cosines) == {"drift", "local", "previous", "real", "synthetic"}
    assert all(-1 <= value <= 1 for value in rows[3].cosines.values())
    assert rows[3].cosines["real"] > 0.3


def test_cosines_and_sharpness_change_no_other_number(tiny_config: RunConfig) -> None:
    config = tiny_config.replace(algorithm="fedsynsam")
    plain = Simulation(config).run().rounds
    probed = Simulation(config.replace(cosines=True, sharpness=True)).run().rounds
    assert [row.train_loss for row in plain] == [row.train_loss for row in probed]
    assert [row.test_loss for row in plain] == [row.test_loss for row in probed]


def test_a_folder_with_another_run_is_refused(tiny_config: RunConfig, tmp_path) -> None:
    Simulation(tiny_config, tmp_path / "run").run()
    with pytest.raises(ConfigError, match="already holds a run"):
        Simulation(tiny_config, tmp_path / "run").run()
    with pytest.raises(ConfigError, match=r"resume: .*lr=0\.05, not 0\.1"):
        Simulation(tiny_config.replace(lr=0.1), tmp_path / "run", resume=True).run()


def test_folders_that_are_no_run(tiny_config: RunConfig, tmp_path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    for out, resume, message in (
        (tmp_path / "notes", False, "is not empty"),
        (tmp_path / "notes" / "text", False, "is a file"),
        (tmp_path / "absent", True, "holds no run"),
    ):
        with pytest.raises(ConfigError, match=message):
            Simulation(tiny_config, out, resume=resume).run()
    with pytest.raises(ConfigError, match="give --out"):
        Simulation(tiny_config, None, resume=True)


def test_damaged_checkpoint(tiny_config: RunConfig, tmp_path) -> None:
    Simulation(tiny_config, tmp_path / "run").run()
    file = tmp_path / "run" / "checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged"):
        Simulation(tiny_config, tmp_path / "run", resume=True).run()


def test_bad_compressor_device_and_data_are_configuration_errors(tiny_config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"^compressor: "):
        Simulation(tiny_config.replace(compressor="zip:9"))
    with pytest.raises(ConfigError, match=r"^device: "):
        Simulation(tiny_config.replace(device="cuda:99"))
    with pytest.raises(DataError, match="cannot share"):
        Simulation(tiny_config.replace(clients=1000)).run()


def test_divergence_names_client_and_round(tiny_config: RunConfig) -> None:
    with pytest.raises(NonFiniteError, match=r"client \d diverged in round 1 .*smaller lr"):
        Simulation(tiny_config.replace(lr=1e30)).run()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server_lr": 1e300}, "global weights diverged in round"),
        ({"lr": 1e30, "local_steps": 1}, "the test loss is nan in"),
    ],
)
def test_weights_and_losses_that_are_no_numbers_end_a_run(tiny_config: RunConfig, changes, words) -> None:
    with pytest.raises(NonFiniteError, match=f"{words}.*server_lr"):
        Simulation(tiny_config.replace(eval_every=1, compressor="none", **changes)).run()


def test_a_second_call_runs_anew(tiny_config: RunConfig) -> None:
    simulation = Simulation(tiny_config)
    first, second = simulation.run(), simulation.run()
    assert len(first.rounds) == len(second.rounds) == tiny_config.rounds
    assert first.summary["uplink_bytes"] == second.summary["uplink_bytes"]


@pytest.mark.parametrize("spec", ["quantize:2", "topk:0.1+quantize:4", "chunktopk:0.1", "none"])
def test_every_kind_of_compressor_runs_and_resumes(tiny_config: RunConfig, tmp_path, spec) -> None:
    config = tiny_config.replace(compressor=spec, algorithm="fedsynsam")
    whole = Simulation(config, tmp_path / "whole").run()
    short = config.replace(rounds=6)

    def interrupt(row: RoundMetrics) -> None:
        if row.round == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        Simulation(short, tmp_path / "broken").run(interrupt)
    Simulation(short, tmp_path / "broken", resume=True).run()
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")
    assert np.isfinite(whole.rounds[-1].test_loss)


def test_a_compressor_has_one_spelling(tiny_config: RunConfig) -> None:
    assert Simulation(tiny_config.replace(compressor="topk:1e-2")).config.compressor == "topk:0.01"
