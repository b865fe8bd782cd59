"""FedSynSAM in Flower: the strategy's rounds, and the client's steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("flwr.serverapp.strategy", reason="Flower is not installed; .ci/run has an environment with it")

from flower_nodes import Nodes
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

import fedsynsam as fs
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.labels import LabelMix
from fedsynsam.fl.synthesis import learn
from fedsynsam.integrations.flower import CompressedGrid, CompressionMod, FedSynSAM, LocalSynSAM

SHAPE, CLASSES, SPEC = (1, 4, 4), 3, "topk:0.2"
CONFIG = RunConfig(
    synthetic_start=3, synthetic_every=2, synthetic_images=2, synthetic_steps=6, synthetic_segment=1, seed=4
)
OPTIONS = {"min_train_nodes": 2, "min_available_nodes": 2, "fraction_evaluate": 0.0}
X = torch.from_numpy(np.random.default_rng(0).standard_normal((60, *SHAPE), dtype=np.float32)).clamp(-1, 1)
Y = X.flatten(1)[:, :CLASSES].argmax(dim=1)


def new_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, CLASSES))


def app() -> ClientApp:
    app = ClientApp(mods=[CompressionMod(SPEC)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = new_model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = LocalSynSAM(message, context, model, torch.optim.SGD, lr=0.2)
        part = slice(30 * int(context.node_config["partition-id"]), None)
        losses = [float(optimizer.step(X[part][:20], Y[part][:20])) for _ in range(3)]
        metrics = MetricRecord({"num-examples": 20, "loss": losses[-1], "shared": int(optimizer._shared is not None)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app


def strategy(**options: object) -> FedSynSAM:
    return FedSynSAM(new_model(), image_shape=SHAPE, classes=CLASSES, low=-1.0, high=1.0,
                     **({"config": CONFIG} | OPTIONS | options))  # fmt: skip


def start() -> ArrayRecord:
    return ArrayRecord(new_model().state_dict())


def test_rounds() -> None:
    inner, fedsynsam = Nodes([app(), app()]), strategy()
    result = fedsynsam.start(CompressedGrid(inner, SPEC), start(), num_rounds=6)
    assert not inner.errors
    used = {number: metrics["shared"] for number, metrics in result.train_metrics_clientapp.items()}
    assert used == {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1}
    assert result.train_metrics_clientapp[6]["loss"] < result.train_metrics_clientapp[1]["loss"]
    # the set is learned after rounds 3 and 5, and goes once to each node
    brings = {int(m.content["config"]["server-round"]) for m in inner.sent if "fedsynsam.synthetic" in m.content}
    assert brings == {4, 6}
    record = inner.sent[-1].content["fedsynsam.synthetic"]
    assert {name: array.shape for name, array in record.items()} == {"images": (6, *SHAPE), "labels": (6, CLASSES)}
    assert np.abs(record["images"].numpy()).max() <= 1.0
    np.testing.assert_allclose(record["labels"].numpy().sum(axis=1), 1.0, rtol=1e-5)


def test_before_the_set_it_is_fedavg() -> None:
    plain = FedAvg(**OPTIONS).start(CompressedGrid(Nodes([app(), app()]), SPEC), start(), num_rounds=3)
    ours = strategy().start(CompressedGrid(Nodes([app(), app()]), SPEC), start(), num_rounds=3)
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(array.numpy(), ours.arrays[name].numpy())


def test_the_set_is_learned_as_in_the_simulator() -> None:
    """From the same weights and payloads, by the same function, bit for bit."""
    inner, fedsynsam = Nodes([app(), app()]), strategy()
    grid = CompressedGrid(inner, SPEC)
    fedsynsam.start(grid, start(), num_rounds=3)
    like = dict(new_model().named_parameters())
    evidence = Evidence(CONFIG.synthetic_window, LabelMix.of(new_model(), CLASSES))
    for number in range(4):
        identifiers = {m.metadata.message_id for m in inner.sent if m.content["config"]["server-round"] == number}
        replies = [reply for reply in inner.replies if reply.metadata.reply_to_message_id in identifiers]
        rows = []
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            update = fs.Payload.decode(reply.content["fedsynsam"]["payload"], like=like).decompress()
            rows.append(torch.cat([part.reshape(-1) for part in update.values()]))
        evidence.add(number, fedsynsam._evidence.weights[number], rows)
    expected, _ = learn(CONFIG, new_model(), fedsynsam._images, evidence, None, 3)
    assert fedsynsam.synthetic is not None
    assert torch.equal(fedsynsam.synthetic.images, expected.images)
    assert torch.equal(fedsynsam.synthetic.logits, expected.logits)


@pytest.mark.parametrize("beta", [1.0, 0.4, 0.0])
def test_a_step_is_the_definition(beta: float) -> None:
    """Against float64 autograd: w - lr ∇L(w + rho d / |d|), d = beta ∇L_syn + (1 - beta) ∇L."""
    images, labels = X[:5] * 0.5, torch.softmax(torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(1)), 1)
    config = ConfigRecord({"fedsynsam-rho": 0.3, "fedsynsam-beta": beta, "fedsynsam-version": 3})
    shared = ArrayRecord({"images": Array(images.numpy()), "labels": Array(labels.numpy())})
    message = Message(RecordDict({"config": config, "fedsynsam.synthetic": shared}), dst_node_id=11,
                      message_type="train")  # fmt: skip
    model, reference = new_model(), new_model().double()
    optimizer = LocalSynSAM(message, Context(77, 11, {}, RecordDict(), {}), model, torch.optim.SGD, lr=0.2)
    for part in (slice(0, 20), slice(20, 40)):
        optimizer.step(X[part], Y[part])
        parameters = list(reference.parameters())
        direction = beta * cross_entropy(reference(images.double()), labels.double())
        direction = direction + (1 - beta) * cross_entropy(reference(X[part].double()), Y[part])
        gradients = torch.autograd.grad(direction, parameters)
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        ahead = copy.deepcopy(reference)
        with torch.no_grad():
            for parameter, gradient in zip(ahead.parameters(), gradients, strict=True):
                parameter += 0.3 * gradient / norm
        steps = torch.autograd.grad(cross_entropy(ahead(X[part].double()), Y[part]), list(ahead.parameters()))
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter -= 0.2 * step
    for parameter, right in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach().double(), right.detach(), rtol=1e-5, atol=1e-6)


def test_a_node_that_lost_the_set_gets_it_again() -> None:
    inner, fedsynsam = Nodes([app(), app()]), strategy(config=CONFIG.replace(synthetic_every=0))  # learned once
    original = inner.push_messages

    def push(messages: list[Message]) -> list[str]:
        messages = list(messages)
        if messages and messages[0].content["config"]["server-round"] == 5:
            inner.restart(11)
        return original(messages)

    inner.push_messages = push
    fedsynsam.start(CompressedGrid(inner, SPEC), start(), num_rounds=6)
    (error,) = inner.errors
    assert isinstance(error, fs.StateError)
    assert "has lost the synthetic set of round 3" in str(error)
    brings = [(m.metadata.dst_node_id, int(m.content["config"]["server-round"])) for m in inner.sent
              if "fedsynsam.synthetic" in m.content]  # fmt: skip
    assert sorted(brings) == [(11, 4), (11, 6), (12, 4)]


def test_what_it_refuses() -> None:
    with pytest.raises(fs.ArgumentError, match=r"start it with CompressedGrid\(grid, SPEC\)"):
        strategy().start(Nodes([app(), app()]), start(), num_rounds=1)
    with pytest.raises(fs.ArgumentError, match="holds buffers or tied parameters"):
        FedSynSAM(torch.nn.BatchNorm1d(3), image_shape=SHAPE, classes=3, low=0, high=1)
    scaled = torch.nn.Linear(3, 3)
    scaled.scale = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(fs.ArgumentError, match=r"the parameter 'scale' has no dimension.* give it the shape \[1\]"):
        FedSynSAM(scaled, image_shape=SHAPE, classes=3, low=0, high=1)
    wrong = ArrayRecord(torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(fs.ArgumentError, match="the arrays are weight, bias; expected those of the model"):
        strategy().start(CompressedGrid(Nodes([app(), app()]), SPEC), wrong, num_rounds=1)
    with pytest.raises(fs.StateError, match="configure_train"):
        strategy().aggregate_train(1, [])
