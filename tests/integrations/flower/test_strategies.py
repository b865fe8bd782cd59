"""Flower's own strategies and mods with ours: those that go together, and those that must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("flwr.serverapp.strategy", reason="Flower is not installed; .ci/run has an environment with it")

from flower_nodes import Nodes, arrays_of, client_app, record
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod, message_size_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedYogi,
    Strategy,
)

import fedsynsam as fs
from fedsynsam.integrations.flower import CompressedGrid, CompressionMod

TARGET = {"w": np.linspace(-1, 1, 300, dtype=np.float32).reshape(10, 30), "b": np.ones(30, dtype=np.float32)}
START = {name: np.zeros_like(array) for name, array in TARGET.items()}
OPTIONS = {"min_train_nodes": 2, "min_available_nodes": 2, "fraction_evaluate": 0.0}


def nodes(mods: list, steps: float = 0.3) -> Nodes:
    """Two nodes that go a part of the way to a target each; the mean of the targets is TARGET."""

    def app(shift: float):
        return client_app(lambda a, m: {n: a[n] + steps * (TARGET[n] + np.float32(shift) - a[n]) for n in a}, mods)

    return Nodes([app(0.2), app(-0.2)])


def run(strategy: Strategy, grid: object, rounds: int = 3) -> dict[str, np.ndarray]:
    result = strategy.start(grid, record(START), num_rounds=rounds)
    return arrays_of(result.arrays)


def distance(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(arrays[n] - TARGET[n]).sum() for n in TARGET)))


STRATEGIES = {
    "FedAvg": lambda: FedAvg(**OPTIONS),
    "FedAvgM": lambda: FedAvgM(server_learning_rate=1.0, server_momentum=0.5, **OPTIONS),
    "FedProx": lambda: FedProx(proximal_mu=0.1, **OPTIONS),
    "FedAdam": lambda: FedAdam(eta=0.1, **OPTIONS),
    "FedYogi": lambda: FedYogi(eta=0.1, **OPTIONS),
    "FedMedian": lambda: FedMedian(**OPTIONS),
    "DP, clipped on the server": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(**OPTIONS), noise_multiplier=0.0, clipping_norm=2.0, num_sampled_clients=2
    ),
    "DP, clipped on the server, adaptive": lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(**OPTIONS), noise_multiplier=0.0, num_sampled_clients=2, initial_clipping_norm=2.0
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_stock_strategies_get_their_ordinary_input(name: str) -> None:
    """The result is that of a run without us, to the float32 rounding of w + (w' - w)."""
    ours = run(STRATEGIES[name](), CompressedGrid(nodes([CompressionMod("none")]), "none"))
    plain = run(STRATEGIES[name](), nodes([]))
    assert list(ours) == list(plain)
    for array, right in zip(ours.values(), plain.values(), strict=True):
        np.testing.assert_allclose(array, right, rtol=1e-5, atol=1e-5)
    assert distance(plain) != pytest.approx(distance(START))


@pytest.mark.parametrize("name", ["FedAvg", "FedProx", "FedAdam"])
@pytest.mark.parametrize("spec", ["topk:0.1", "topk:0.2+quantize:4", "quantize:8"])
def test_they_converge_with_compression(name: str, spec: str) -> None:
    ours = run(STRATEGIES[name](), CompressedGrid(nodes([CompressionMod(spec)]), spec), rounds=40)
    assert distance(ours) < 0.3 * distance(START)


def test_noise_of_the_client_is_added_before_compression() -> None:
    """Local differential privacy: what leaves the node is a function of the noisy update alone."""
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=10.0, delta=0.1)
    inner = nodes([CompressionMod("quantize:8"), mod])
    arrays = run(FedAvg(**OPTIONS), CompressedGrid(inner, "quantize:8"), rounds=1)
    assert not inner.errors
    deviation = 0.1 * np.sqrt(2 * np.log(1.25 / 0.1)) / 10.0
    assert 0.3 * deviation < np.std(arrays["b"] - np.mean(arrays["b"])) < 2 * deviation
    assert distance(arrays) < distance(START)


@pytest.mark.parametrize("spec", ["none", "topk:0.5[residual=false]", "chunktopk:0.5[residual=false]"])
def test_clipping_on_the_client_with_a_spec_that_keeps_norms(spec: str) -> None:
    clipping = 0.5
    inner = nodes([CompressionMod(spec), fixedclipping_mod])
    strategy = DifferentialPrivacyClientSideFixedClipping(FedAvg(**OPTIONS), 0.0, clipping, 2)
    grid = CompressedGrid(inner, spec)
    arrays = run(strategy, grid, rounds=1)
    assert not inner.errors
    assert 0 < np.sqrt(sum(np.square(array).sum() for array in arrays.values())) <= clipping * (1 + 1e-6)
    for payload in grid.payloads.values():
        row = np.concatenate([part.numpy().ravel() for part in payload.decompress().values()])
        assert np.linalg.norm(row) <= clipping * (1 + 1e-6)


@pytest.mark.parametrize("spec", ["topk:0.5", "quantize:8", "topk:0.5[residual=false]+quantize:8"])
def test_clipping_on_the_client_is_refused_where_norms_can_grow(spec: str) -> None:
    inner = nodes([CompressionMod(spec), fixedclipping_mod])
    with pytest.raises(fs.ArgumentError, match="clip on the server, or use 'none'"):
        run(DifferentialPrivacyClientSideFixedClipping(FedAvg(**OPTIONS), 0.1, 0.5, 2), CompressedGrid(inner, spec))
    assert not inner.sent, "nothing may leave the server"


def test_the_residual_would_have_broken_the_clipping_norm() -> None:
    """The reason for the refusal: the second payload of a clipped client may exceed the norm."""
    compressor, norm = fs.compressor("topk:0.5"), 1.0
    update = {"w": torch.full((4,), norm / 2)}
    state, largest = compressor.init(update), 0.0
    for seed in range(3):
        payload, state = compressor.compress(update, state, seed=seed)
        largest = max(largest, float(payload.decompress()["w"].norm()))
    assert largest > norm


@pytest.mark.parametrize(
    ("outer", "reason"),
    [
        (LocalDpMod(1.0, 0.1, 10.0, 0.1), "LocalDpMod expects exactly one ArrayRecord"),
        (fixedclipping_mod, "fixedclipping_mod expects exactly one ConfigRecord"),
        (adaptiveclipping_mod, "adaptiveclipping_mod expects exactly one ConfigRecord"),
    ],
    ids=["local noise", "fixed clipping", "adaptive clipping"],
)
def test_mods_in_the_wrong_order_fail_loudly(outer: object, reason: str) -> None:
    """A mod that changes arrays finds none behind ours: every reply is an error, none is silently unprotected."""
    inner = nodes([outer, CompressionMod("none")])
    assert run(FedAvg(**OPTIONS), CompressedGrid(inner, "none"), rounds=1) == {}
    assert inner.replies
    assert all(reply.has_error() and reason in reply.error.reason for reply in inner.replies)


def test_mods_that_only_look_may_stand_anywhere() -> None:
    for mods in ([message_size_mod, CompressionMod("topk:0.1")], [CompressionMod("topk:0.1"), message_size_mod]):
        inner = nodes(mods)
        run(FedAvg(**OPTIONS), CompressedGrid(inner, "topk:0.1"), rounds=1)
        assert not inner.errors


def test_secure_aggregation_is_refused_on_both_sides() -> None:
    from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS

    content = RecordDict({"arrays": record(START), RECORD_KEY_CONFIGS: ConfigRecord({"stage": "setup"})})
    message = Message(content, dst_node_id=11, message_type="train")
    inner = nodes([CompressionMod("none")])
    with pytest.raises(fs.ArgumentError, match="secure aggregation adds up masked dense vectors"):
        CompressedGrid(inner, "none").send_and_receive([message])
    inner.send_and_receive([message])  # a server without our grid
    assert isinstance(inner.errors[0], fs.ArgumentError)
    assert "secure aggregation" in str(inner.errors[0])


def test_a_server_without_the_grid_is_told() -> None:
    inner = nodes([CompressionMod("topk:0.1")])
    inner.send_and_receive(
        [Message(RecordDict({"arrays": record(START)}), dst_node_id=11, message_type="train.default")]
    )
    assert isinstance(inner.errors[0], fs.ArgumentError)
    assert str(inner.errors[0]).startswith("the server does not decode payloads: give its strategy a CompressedGrid")


def test_clients_without_the_mod_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert run(FedAvg(**OPTIONS), CompressedGrid(nodes([]), "topk:0.1"), rounds=1) == {}
    assert "is CompressionMod the first of the ClientApp's mods?" in caplog.text


def test_both_sides_must_name_the_same_spec() -> None:
    inner = nodes([CompressionMod("topk:0.1")])
    assert run(FedAvg(**OPTIONS), CompressedGrid(inner, "topk:0.2"), rounds=1) == {}
    assert "the server expects 'topk:0.2', this node compresses with 'topk:0.1'" in str(inner.errors[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"w": a["w"]}, "the reply lacks array 'b'"),
        (lambda a: a | {"more": a["b"]}, "the reply holds array 'more'"),
        (lambda a: a | {"w": a["w"].T}, r"array 'w' of the reply has the shape \[30, 10\], the server sent \[10, 30\]"),
        (lambda a: a | {"w": a["w"].astype(np.complex64)}, "array 'w' of the reply is complex64, the server sent"),
        (lambda a: a | {"w": a["w"] * np.nan}, "tensor 'w' of the update holds NaN or infinity"),
    ],
    ids=["missing", "extra", "shape", "kind", "nan"],
)
def test_a_reply_that_does_not_fit_is_named_in_the_node(change: object, message: str) -> None:
    inner = Nodes([client_app(lambda a, m: change(a), [CompressionMod("topk:0.1")])])
    grid = CompressedGrid(inner, "topk:0.1")
    (reply,) = grid.send_and_receive(
        [Message(RecordDict({"arrays": record(START)}), dst_node_id=11, message_type="train")]
    )
    assert reply.has_error()
    with pytest.raises(fs.FedSynSamError, match=message):
        raise inner.errors[0]
    assert "fedsynsam" not in inner.contexts[11].state, "the memory must be as it was"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": record(START)}, r"holds no ArrayRecord 'arrays' \(found: 'model'\)"),
        ({"arrays": record({"n": np.arange(3)})}, "'arrays' holds no floating-point array"),
        ({"arrays": record(START | {"c": np.zeros(3, np.complex64)})}, "array 'c' of 'arrays' is complex64"),
    ],
    ids=["key", "nothing to compress", "complex"],
)
def test_a_message_that_cannot_be_answered_is_not_sent(content: dict, message: str) -> None:
    inner = nodes([CompressionMod("none")])
    with pytest.raises(fs.ArgumentError, match=message):
        CompressedGrid(inner, "none").send_and_receive(
            [Message(RecordDict(content), dst_node_id=11, message_type="train")]
        )
    assert not inner.sent
