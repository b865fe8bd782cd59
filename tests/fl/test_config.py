"""Configurations: what is accepted, what is refused, and with which words."""

import dataclasses
import json

import pytest

from fedsynsam.errors import ConfigError
from fedsynsam.fl.algorithm import PRESETS, resolve, unlearned_note
from fedsynsam.fl.config import ALGORITHMS, RunConfig


def test_dict_and_json_round_trip() -> None:
    config = RunConfig(algorithm="fedsam", rho=0.2, threads=3, data_dir="somewhere")
    assert RunConfig.from_dict(config.to_dict()) == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_json_without_infinity() -> None:
    config = RunConfig(alpha=float("inf"))
    text = json.dumps(config.to_dict())
    assert json.loads(text, parse_constant=pytest.fail)["alpha"] == "inf"
    assert RunConfig.from_dict(json.loads(text)) == config


def test_toml_with_dashes_and_overrides(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('algorithm = "fedavg"\nlocal-steps = 7\nlr = 1\n')
    config = RunConfig.from_toml(path, seed=5)
    assert (config.algorithm, config.local_steps, config.lr, config.seed) == ("fedavg", 7, 1.0, 5)
    assert type(config.lr) is float


@pytest.mark.parametrize("content", ["algorithm = ", b"\xff\xfe"])
def test_malformed_toml(tmp_path, content) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match="is not TOML"):
        RunConfig.from_toml(path)


def test_the_table_of_a_comparison_is_not_a_setting(tmp_path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("alpha = inf\n[compare]\nseeds = 3\n")
    assert RunConfig.from_toml(path) == RunConfig(alpha=float("inf"))


def test_missing_toml(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml.*cannot be read"):
        RunConfig.from_toml(tmp_path / "absent.toml")


def test_unknown_key_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'local_step'; did you mean 'local_steps'"):
        RunConfig.from_dict({"local_step": 3})


def test_unknown_algorithm_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=f"algorithm: unknown value 'fedfoo'; known: {', '.join(ALGORITHMS)}"):
        RunConfig(algorithm="fedfoo")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alpha", 0.0),
        ("alpha", -1.0),
        ("alpha", float("nan")),
        ("participation", 0.0),
        ("participation", 1.5),
        ("clients", 0),
        ("rounds", 0),
        ("lr", float("inf")),
        ("rho", -0.1),
        ("beta", 1.1),
        ("momentum", -0.5),
        ("threads", 0),
        ("seed", -1),
        ("clients", 2.5),
        ("clients", True),
        ("encode", 1),
        ("lr", "fast"),
        ("partition", "random"),
        ("model", "vgg"),
        ("device", "tpu"),
        ("device", "cpu:1"),
        ("dataset", "imagenet"),
        ("synthetic_method", "magic"),
        ("device", "cuda:"),
        ("device", "cuda:99999"),
        ("local_steps", 10**12),
    ],
)
def test_illegal_values_are_named(key, value) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        RunConfig(**{key: value})


def test_a_segment_that_no_trajectory_holds_is_refused_where_a_set_is_learned() -> None:
    with pytest.raises(ConfigError, match=r"^synthetic_segment: 30 rounds do not fit a trajectory of 25 .*; give 25"):
        resolve(RunConfig(algorithm="fedsynsam", synthetic_method="trajectory", synthetic_segment=30))
    for without in ({"algorithm": "fedavg", "synthetic_method": "trajectory"}, {"algorithm": "fedsynsam"}):
        assert resolve(RunConfig(**without, synthetic_start=3)).synthetic_segment == 5


def test_a_run_that_ends_before_its_set_is_learned_says_so() -> None:
    assert "ends before" in str(unlearned_note(RunConfig(algorithm="dynafed", rounds=25)))
    for config in (
        RunConfig(algorithm="fedsynsam", rounds=26),
        RunConfig(algorithm="fedavg", rounds=3),
        RunConfig(algorithm="fedsynsam", rounds=3, synthetic="some.safetensors"),
    ):
        assert unlearned_note(config) is None


def test_cohort_size_rounds_to_nearest_and_is_never_empty() -> None:
    sizes = [RunConfig(clients=c, participation=p).cohort_size for c, p in ((50, 0.2), (7, 0.5), (10, 0.01), (3, 1.0))]
    assert sizes == [10, 4, 1, 3]


def test_every_algorithm_has_a_preset_and_rho_is_resolved() -> None:
    assert set(PRESETS) == set(ALGORITHMS)
    assert resolve(RunConfig(algorithm="fedsam")).rho == 0.05
    assert resolve(RunConfig(algorithm="fedsam", rho=0.3)).rho == 0.3


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().rounds = 3
