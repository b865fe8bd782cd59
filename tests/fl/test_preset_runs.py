"""Whole small runs of every preset: they learn, reduce to simpler ones, count all bytes, and both engines agree."""

import pytest
import torch

from fedsynsam.fl import capture, simulation
from fedsynsam.fl.algorithm import PRESETS
from fedsynsam.fl.config import ALGORITHMS, RunConfig
from fedsynsam.fl.simulation import Simulation

from .test_simulation import EVERY_CHOICE

DENSE = 4 * 4_355  # bytes of the model's weights


def final(config: RunConfig) -> Simulation:
    """A run at its end."""
    run = Simulation(config)
    run.run()
    return run


def weights(config: RunConfig) -> torch.Tensor:
    return final(config)._server.state.weights


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_learns(tiny_config: RunConfig, algorithm) -> None:
    config = tiny_config.replace(algorithm=algorithm, rounds=30, partition="iid", lr=0.02, synthetic_start=10)
    rows = Simulation(config).run().rounds
    assert rows[-1].test_accuracy > 0.9
    assert rows[-1].test_loss < 0.6 * rows[1].test_loss


@pytest.mark.parametrize(
    ("algorithm", "options", "simpler"),
    [
        ("fedprox", {"prox": 0.0}, "fedavg"),
        ("mofedsam", {"gradient_share": 1.0}, "fedsam"),
        ("mofedsam", {"gradient_share": 1.0, "rho": 0.0}, "fedavg"),
        ("fedgamma", {"rho": 0.0}, "scaffold"),
        ("fedlesam-s", {"rho": 0.0}, "scaffold"),
        ("fedsynsam-s", {"rho": 0.0}, "scaffold"),
        ("fedsynsam-s", {"synthetic_start": 6}, "scaffold"),
        ("fedspeed", {"rho": 0.0}, "feddyn"),
        ("fedsmoo", {"rho": 0.0}, "feddyn"),
        ("fedlesam-d", {"rho": 0.0}, "feddyn"),
        ("fedsynsam-d", {"rho": 0.0}, "feddyn"),
        ("fedsynsam-d", {"synthetic_start": 6}, "feddyn"),
        ("fedgloss", {"rho": 0.0}, "feddyn"),
        ("dynafed", {"synthetic_start": 6}, "fedavg"),
    ],
)
def test_reduces_to_its_simpler_relative_bit_for_bit(tiny_config: RunConfig, algorithm, options, simpler) -> None:
    plain = weights(tiny_config.replace(algorithm=simpler))
    assert torch.equal(weights(tiny_config.replace(algorithm=algorithm, **options)), plain)
    assert not torch.equal(weights(tiny_config.replace(algorithm=algorithm)), plain)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_engines_agree(tiny_config: RunConfig, algorithm) -> None:
    """Four rounds of four steps: the sums of 8 examples are rounded in another order."""
    config = tiny_config.replace(algorithm=algorithm, compressor="none", rounds=4)
    one, other = (weights(config.replace(engine=engine)) for engine in ("sequential", "batched"))
    torch.testing.assert_close(other, one, rtol=0, atol=2e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_recorded_round_has_all_its_inputs(tiny_config: RunConfig, algorithm, monkeypatch) -> None:
    """What a recording does not read anew would stay as it was in the first round."""
    config = tiny_config.replace(algorithm=algorithm, engine="batched")
    plain = weights(config)
    monkeypatch.setattr(simulation, "captures", lambda config, device: True)
    monkeypatch.setattr(capture, "record_graph", lambda call: call)
    assert torch.equal(weights(config), plain)


@pytest.mark.parametrize(
    ("algorithm", "extra"),
    [
        ("mofedsam", 1),
        ("scaffold", 1),
        ("fedlesam-s", 1),
        ("fedsmoo", 1),
        ("fedspeed", 0),
        ("fedgloss", 0),
        ("dynafed", 0),
    ],
)
def test_vectors_that_are_broadcast_count_as_downlink(tiny_config: RunConfig, algorithm, extra) -> None:
    rows = Simulation(tiny_config.replace(algorithm=algorithm)).run().rounds
    assert [row.downlink_bytes for row in rows] == [3 * DENSE] + [3 * DENSE * (1 + extra)] * 5


def test_a_set_that_clients_do_not_use_is_not_sent(tiny_config: RunConfig) -> None:
    rows = {name: Simulation(tiny_config.replace(algorithm=name)).run().rounds for name in ("dynafed", "fedsynsam-s")}
    assert {row.downlink_bytes for row in rows["dynafed"]} == {3 * DENSE}
    assert rows["fedsynsam-s"][2].downlink_bytes == 3 * (2 * DENSE + 4 * (6 * 64 + 6 * 3)), "weights, variate, set"


def test_both_uploads_of_fedsmoo_count_and_are_compressed(tiny_config: RunConfig) -> None:
    for spec in ("none", "quantize:4"):  # of a fixed length
        one, two = (
            Simulation(tiny_config.replace(algorithm=name, compressor=spec)).run().rounds
            for name in ("fedspeed", "fedsmoo")
        )
        assert [row.uplink_bytes for row in two] == [2 * row.uplink_bytes for row in one]
    sparse = Simulation(tiny_config.replace(algorithm="fedsmoo", encode=False)).run()
    sent = Simulation(tiny_config.replace(algorithm="fedsmoo")).run()
    assert [row.uplink_bytes for row in sparse.rounds] == [row.uplink_bytes for row in sent.rounds]


def test_the_note_counts_every_vector(tiny_config: RunConfig) -> None:
    notes: list[str] = []
    for algorithm, spec in (("fedsmoo", "topk:0.1"), ("fedsmoo", "none"), ("scaffold", "none"), ("mofedsam", "none")):
        Simulation(tiny_config.replace(algorithm=algorithm, compressor=spec, rounds=2)).run(on_note=notes.append)
    assert [note for note in notes if not note.startswith("engine")] == [
        "clients' state (residual, dual, mu, mu_residual): 6 clients x 4 vectors x 4,355 values x 4 bytes = at most "
        "0.4 MB, in host memory",
        "clients' state (dual, mu): 6 clients x 2 vectors x 4,355 values x 4 bytes = at most 0.2 MB, in host memory",
        "clients' state (variate): 6 clients x 4,355 values x 4 bytes = at most 0.1 MB, in host memory",
    ]


@pytest.mark.parametrize("algorithm", ["fedsynsam-s", "fedsmoo"])
def test_records_lie_anywhere(tiny_config: RunConfig, tmp_path, algorithm) -> None:
    config = tiny_config.replace(algorithm=algorithm)
    runs = [Simulation(config.replace(residual_store=store), tmp_path / store) for store in ("host", "disk")]
    for run in runs:
        run.run()
    assert torch.equal(*(run._server.state.weights for run in runs))
    names = {"fedsynsam-s": {"residual", "variate"}, "fedsmoo": {"residual", "dual", "mu", "mu_residual"}}[algorithm]
    assert set(runs[0]._records.get(0)) == names


def test_every_choice_is_made_by_the_sample_of_presets() -> None:
    for field in ("perturbation", "correction", "server_step"):
        plain = {"none", "average", "local"}
        assert {getattr(PRESETS[name], field) for name in EVERY_CHOICE} | plain == {
            getattr(preset, field) for preset in PRESETS.values()
        } | plain
