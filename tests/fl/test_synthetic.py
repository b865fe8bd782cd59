"""The file of a synthetic set: what a run leaves another can begin with, and anything else is refused by name."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedsynsam.errors import ConfigError, DataError
from fedsynsam.fl.algorithm import resolve
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.data import Dataset, dataset_from_arrays
from fedsynsam.fl.runfolder import check_same, load_config
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.synthesis import first_set
from fedsynsam.fl.synthetic import (
    FACTS,
    FILE_NAME,
    SyntheticSet,
    as_pixels,
    load_synthetic,
    read_synthetic,
    save_synthetic,
)
from fedsynsam.fl.tensorfile import pack

from .conftest import tiny_arrays
from .test_simulation import lines


@pytest.fixture
def synthetic(tiny_dataset: Dataset) -> SyntheticSet:
    return first_set(tiny_dataset, 2, np.random.default_rng(1))


@pytest.fixture
def file(tmp_path, synthetic, tiny_dataset):
    save_synthetic(tmp_path / FILE_NAME, synthetic, tiny_dataset, RunConfig(seed=3, alpha=0.5), 25)
    return tmp_path / FILE_NAME


def same(first: SyntheticSet, second: SyntheticSet) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))


def test_pixels_are_brightness_and_a_channel_of_one_brightness_is_dark() -> None:
    images = torch.tensor([[-1.0, 1.0, 3.0], [2.0, 2.0, 2.0]]).view(1, 2, 1, 3)
    pixels = as_pixels(images, torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 2.0]))
    assert pixels.view(2, 3).tolist() == [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]


def test_a_file_gives_the_set_back_and_says_where_it_is_from(file, synthetic, tiny_dataset) -> None:
    assert same(load_synthetic(file, tiny_dataset).synthetic, synthetic)
    facts = read_synthetic(file).facts
    assert {"round": 25, "seed": 3, "alpha": 0.5, "dataset": "fashion-mnist-subset"}.items() <= facts.items()
    assert (facts["low"], facts["high"]) == (tiny_dataset.low.tolist(), tiny_dataset.high.tolist())
    pixels = read_synthetic(file).pixels()
    expected = (synthetic.images - tiny_dataset.low) / (tiny_dataset.high - tiny_dataset.low)
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    assert [path.name for path in file.parent.iterdir()] == [FILE_NAME]


def test_pixels_keep_their_brightness_under_another_normalisation(file, synthetic, tiny_dataset) -> None:
    arrays = tiny_arrays()
    darker = {key: value // 2 if key.startswith("x") else value for key, value in arrays.items()}
    darker["x_train"][0, 0, 0] = 200  # another brightest pixel, mean and deviation
    other = dataset_from_arrays("darker", darker)
    stored = load_synthetic(file, other)
    loaded = stored.synthetic
    assert (stored.facts["low"], stored.facts["seed"]) == (other.low.tolist(), 3)
    assert not torch.allclose(loaded.images, synthetic.images, atol=0.05)
    places = [
        (images - data.low.view(-1, 1, 1)) / (data.high - data.low).view(-1, 1, 1)
        for images, data in ((synthetic.images, tiny_dataset), (loaded.images, other))
    ]
    torch.testing.assert_close(*places, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"classes": 4}, "images 1x8x8 of 3 classes.*other has images 1x8x8 of 4 classes"),
        ({"crop": 6}, "images 1x8x8 of 3 classes.*other has images 1x6x6 of 3 classes"),
    ],
    ids=["classes", "shape"],
)
def test_a_set_of_other_images_is_refused(file, arrays, words) -> None:
    crop = arrays.pop("crop", 8)
    made = tiny_arrays(**arrays)
    cut = {key: value[:, :crop, :crop] if key.startswith("x") else value for key, value in made.items()}
    with pytest.raises(ConfigError, match=words) as caught:
        load_synthetic(file, dataset_from_arrays("other", cut))
    assert str(file) in str(caught.value)


def test_a_channel_of_one_brightness_is_dark(tmp_path) -> None:
    path = tmp_path / "synthetic.safetensors"
    path.write_bytes(pack(tensors(images=torch.ones(2, 1, 8, 8)), {**GOOD, "low": [0.5], "high": [0.5]}))
    assert torch.equal(read_synthetic(path).pixels(), torch.zeros(2, 1, 8, 8))


GOOD = {"content": "synthetic set", "low": [0.0], "high": [1.0]}


def tensors(**changes) -> dict[str, torch.Tensor]:
    return {"images": torch.zeros(2, 1, 8, 8), "logits": torch.zeros(2, 3), "log_rate": torch.tensor(0.0)} | changes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged"),
        (b"no safetensors at all", "is damaged"),
        (pack({"weights": torch.zeros(3)}, {"round": 1}), r"holds no synthetic set \(but weights\)"),
        (pack(tensors(), {**GOOD, "content": "other"}), "holds no synthetic set"),
        (pack(tensors(images=torch.zeros(2, 8, 8)), GOOD), r"images torch.float32 \[2, 8, 8\].*right would be"),
        (pack(tensors(logits=torch.zeros(3, 3)), GOOD), "right would be"),
        (pack(tensors(images=torch.zeros(0, 1, 8, 8), logits=torch.zeros(0, 3)), GOOD), "right would be"),
        (pack(tensors(images=torch.zeros(2, 1, 8, 8, dtype=torch.float64)), GOOD), "torch.float64.*right would be"),
        (pack(tensors(), {**GOOD, "low": [0.0, 0.0]}), "right would be"),
        (pack(tensors(), {"content": "synthetic set"}), "right would be"),
        (pack(tensors(), {**GOOD, "high": ["1"]}), "right would be"),
        (pack(tensors(), {**GOOD, "high": [-1.0]}), "right would be"),
        (pack(tensors(log_rate=torch.tensor(float("nan"))), GOOD), "not finite"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, words) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_synthetic(path)
    assert str(path) in str(caught.value)
    assert "give the synthetic.safetensors of a run" in str(caught.value)
    assert "start the run anew" not in str(caught.value)


def test_a_flipped_bit_a_plain_file_and_a_folder_are_refused(file, tmp_path) -> None:
    blob = bytearray(file.read_bytes())
    blob[-100] ^= 1
    file.write_bytes(bytes(blob))
    with pytest.raises(DataError, match="checksum does not match"):
        read_synthetic(file)
    save_file(tensors(), tmp_path / "plain.safetensors")
    with pytest.raises(DataError, match="has version None"):
        read_synthetic(tmp_path / "plain.safetensors")
    with pytest.raises(DataError, match=r"is a folder; give the synthetic\.safetensors of a run, such as"):
        read_synthetic(tmp_path)


# ---- in runs ----


def begun_with(config: RunConfig, file, out, **changes):
    return Simulation(config.replace(algorithm="fedsynsam", synthetic=str(file), **changes), out).run()


def test_a_run_leaves_its_latest_set_and_says_what_learning_took(tiny_config, tiny_npz, tmp_path) -> None:
    simulation = Simulation(tiny_config.replace(algorithm="fedsynsam"), tmp_path / "run")
    result = simulation.run()
    stored = read_synthetic(tmp_path / "run" / FILE_NAME)
    assert same(stored.synthetic, simulation._server.state.synthetic)
    assert (stored.facts["round"], stored.facts["dataset"]) == (4, str(tiny_npz))
    learned = [row.round for row in result.rounds if row.synthetic_loss is not None]
    assert learned == [3, 5]  # after rounds 2 and 4
    for row in result.rounds:
        assert (row.synthetic_seconds is None) == (row.round not in learned)
        if row.synthetic_seconds is not None and row.synthetic_loss is not None:
            assert 0 < row.synthetic_seconds < row.seconds
            assert 0 < row.synthetic_loss < 2


def test_a_given_set_is_used_from_round_one_and_kept(tiny_config, file, synthetic, tmp_path) -> None:
    given = begun_with(tiny_config, file, tmp_path / "given", synthetic_every=None)
    fresh = Simulation(tiny_config.replace(algorithm="fedsynsam")).run()
    assert given.rounds[0].train_loss != fresh.rounds[0].train_loss
    assert given.rounds[0].downlink_bytes == fresh.rounds[0].downlink_bytes + 3 * synthetic.num_bytes
    assert all(row.synthetic_loss is None for row in given.rounds)
    assert same(read_synthetic(tmp_path / "given" / FILE_NAME).synthetic, synthetic)


@pytest.mark.parametrize(("every", "kept"), [(None, False), (2, True)])
def test_a_trajectory_is_kept_only_to_learn_from(tiny_config, file, tmp_path, every, kept) -> None:
    begun_with(tiny_config, file, tmp_path / "given", synthetic_every=every)
    state = (tmp_path / "given" / "checkpoint" / "state.safetensors").read_bytes()
    assert (b"evidence/weights/6" in state) == kept


def test_a_checkpoint_has_the_given_set(tiny_config, file, tmp_path) -> None:
    """A run goes on after the file is gone."""
    begun_with(tiny_config, file, tmp_path / "whole", synthetic_every=None)
    begun_with(tiny_config, file, tmp_path / "broken", synthetic_every=None, rounds=2)
    stored = json.loads((tmp_path / "broken" / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**stored, "rounds": tiny_config.rounds}))
    file.unlink()
    config = tiny_config.replace(algorithm="fedsynsam", synthetic=str(file), synthetic_every=None)
    Simulation(config, tmp_path / "broken", resume=True).run()
    states = [(tmp_path / run / "checkpoint" / "state.safetensors").read_bytes() for run in ("whole", "broken")]
    assert states[0] == states[1]
    with pytest.raises(DataError, match="cannot be read"):
        Simulation(config, tmp_path / "another").run()


def test_a_given_set_keeps_its_facts_until_the_run_learns_one(tiny_config, file, tmp_path) -> None:
    begun = read_synthetic(file).facts
    config = tiny_config.replace(algorithm="fedsynsam", synthetic=str(file), synthetic_every=2, checkpoint_every=1)

    def facts() -> dict:
        return read_synthetic(tmp_path / "run" / FILE_NAME).facts

    class Stop(Exception):
        pass

    def stop(row) -> None:
        assert facts() == begun
        raise Stop

    for resume in (False, True):
        with pytest.raises(Stop):
            Simulation(config, tmp_path / "run", resume=resume).run(on_round=stop)
    Simulation(config, tmp_path / "run", resume=True).run()
    assert {"round": 4, "seed": 0, "alpha": 1.0, "dataset": config.dataset}.items() <= facts().items()


def test_a_file_with_another_set_is_refused(tiny_config, file, synthetic, tiny_dataset, tmp_path) -> None:
    begun_with(tiny_config, file, tmp_path / "run", synthetic_every=None)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(stored["synthetic_crc32"]) == 8
    config = load_config(tmp_path / "run")
    check_same(tmp_path / "run", config)
    other = dataclasses.replace(synthetic, images=-synthetic.images)
    save_synthetic(file, other, tiny_dataset, RunConfig(), 25)
    words = f"{str(file)!r} holds another set than when the run in .* began"
    with pytest.raises(ConfigError, match=words):
        check_same(tmp_path / "run", config)
    with pytest.raises(ConfigError, match=words):
        Simulation(config, tmp_path / "run", resume=True).run()
    del stored["synthetic_crc32"]  # as a run of an older version
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    check_same(tmp_path / "run", config)


def test_a_given_set_is_renewed_if_asked(tiny_config, file, synthetic, tmp_path) -> None:
    result = begun_with(tiny_config, file, tmp_path / "run", synthetic_every=2)
    assert [row.round for row in result.rounds if row.synthetic_loss is not None] == [3, 5]
    moved = (read_synthetic(tmp_path / "run" / FILE_NAME).synthetic.images - synthetic.images).abs().max()
    assert 0 < float(moved) < 1  # warm-started, not anew


def test_renewals_are_the_default_without_a_file_and_none_with_one() -> None:
    assert resolve(RunConfig()).synthetic_every == 10
    assert resolve(RunConfig(synthetic="x.safetensors")).synthetic_every == 0
    assert resolve(RunConfig(synthetic="x.safetensors", synthetic_every=5)).synthetic_every == 5


def test_a_resumed_run_knows_the_loss_of_the_last_learning(tiny_config, tmp_path) -> None:
    """Stopped in the very round for which the set was learned, it still reports the loss; the seconds are gone."""

    class Stop(Exception):
        pass

    config = tiny_config.replace(algorithm="fedsynsam", checkpoint_every=1)
    Simulation(config, tmp_path / "whole").run()
    simulation = Simulation(config, tmp_path / "broken")

    def stop(row) -> None:
        if row.round == 2:
            simulation._learn(None)
            simulation._save()
            raise Stop

    with pytest.raises(Stop):
        simulation.run(on_round=stop)
    Simulation(config, tmp_path / "broken", resume=True).run()
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    row = json.loads((tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()[2])
    assert row["synthetic_loss"] > 0
    assert "synthetic_seconds" not in row


def test_other_algorithms_pass_a_given_set_by(tiny_config, tmp_path, file) -> None:
    plain = Simulation(tiny_config).run()
    given = Simulation(tiny_config.replace(synthetic=str(file)), tmp_path / "run").run()
    assert [row.train_loss for row in plain.rounds] == [row.train_loss for row in given.rounds]
    assert not (tmp_path / "run" / FILE_NAME).exists()


def test_a_bad_file_leaves_no_folder_behind(tiny_config, tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        begun_with(tiny_config, tmp_path / "nosuch", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_facts_are_those_of_the_configuration() -> None:
    assert set(FACTS) <= {field.name for field in dataclasses.fields(RunConfig)}
