"""A client's steps as one call give the bits of the same steps made in turn."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedsynsam.errors import ArgumentError
from fedsynsam.fl import client
from fedsynsam.fl.algorithm import PRESETS, Knowledge, perturbation_for, resolve
from fedsynsam.fl.client import LocalRound
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset, dataset_from_arrays
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.models import build_model
from fedsynsam.fl.perturbation import (
    Consensus,
    FixedSet,
    FreshData,
    LocalGradient,
    NoPerturbation,
    Perturbation,
    PreviousUpdate,
    SteadyPerturbation,
)
from fedsynsam.fl.small import small_network
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.workers import Worker
from fedsynsam.ops import backend
from fedsynsam.ops.local_steps import Source, StoredBatches, local_steps
from fedsynsam.ops.network import SmallNetwork

pytestmark = pytest.mark.skipif(backend.extension is None, reason="the C++ extension is not built")
CPU = torch.device("cpu")
CLASSES, BATCH = 4, 35  # two blocks of images and a part of one


def uint8_dataset(channels: int = 1) -> Dataset:
    rng = np.random.default_rng(channels)
    images = rng.integers(256, size=(60, 16, 16, channels), dtype=np.uint8)
    labels = np.arange(60) % CLASSES
    return dataset_from_arrays("x", {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels})


def steps_of(dataset: Dataset, seed: int = 0) -> Steps:
    return Steps(dataset, [np.random.default_rng(seed).integers(60, size=(5, BATCH))])


def perturbations(dataset: Dataset, start: Tensor) -> dict[str, Perturbation]:
    shared = dataset.x_train[torch.arange(20)], functional.one_hot(dataset.y_train[:20], CLASSES) * 0.7
    other = start + 0.1 * torch.randn(len(start), generator=torch.Generator().manual_seed(1))
    return {
        "none": NoPerturbation(),
        "local": LocalGradient(),
        "previous": PreviousUpdate(start, [other]),
        "never active": PreviousUpdate(start, [None]),
        "synthetic": FixedSet(shared, 1.0),
        "real": FixedSet((shared[0], dataset.y_train[:20]), 1.0),
        "mixed": FixedSet(shared, 0.5),
        "once": FixedSet(shared, 1.0, once=True),
        "mixed once": FixedSet(shared, 0.5, once=True),
        "consensus": Consensus(0.01 * start[None], 0.02 * start, 0.1),
        "oracle": FreshData(steps_of(dataset, 1)),
    }


IN_TURN = {"consensus", "oracle"}  # what a step remembers, and batches of one's own: no form for a whole round
KINDS = list(perturbations(uint8_dataset(), torch.zeros(3)))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The losses of the rounds that were made by one call."""
    calls: list[Tensor] = []

    def watched(*args: Any, **options: Any) -> Tensor:
        calls.append(local_steps(*args, **options))
        return calls[-1]

    monkeypatch.setattr(client, "local_steps", watched)
    return calls


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "corrected"])
@pytest.mark.parametrize(("model", "channels"), [("cnn", 1), ("cnn", 3), ("mlp", 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_steps_in_turn(
    at_once: list[Tensor], monkeypatch: pytest.MonkeyPatch, kind: str, model: str, channels: int, plain: bool
) -> None:
    dataset = uint8_dataset(channels)
    module = build_model(model, dataset.image_shape, CLASSES, seed=0)
    start = flat_weights(module)
    config, correction = RunConfig(rho=0.1, lr=0.1), Correction()
    if not plain:
        config = config.replace(momentum=0.5, weight_decay=0.01, clip_norm=0.5)
        correction = Correction(0.5, 0.2, 0.01 * torch.randn(1, len(start), generator=torch.Generator().manual_seed(2)))

    def train() -> tuple[Tensor, ...]:
        work = LocalRound(steps_of(dataset), perturbations(dataset, start)[kind], correction)
        return Worker(module, CPU).train(start, work, config)

    whole = train()
    assert len(at_once) == (kind not in IN_TURN)
    monkeypatch.setattr(client, "_steps_at_once", lambda *_: None)
    in_turn = train()
    assert len(whole) == len(in_turn)
    assert float(whole[0].abs().max()) > 0
    assert all(torch.equal(one, other) for one, other in zip(whole, in_turn, strict=True))


def test_every_preset_but_two_has_one_source_for_a_round() -> None:
    """The exceptions are FedSMOO, whose duals move at each step, and `oracle`, a ceiling for study."""
    dataset, weights = uint8_dataset(), torch.zeros(3)
    shared = dataset.x_train[torch.arange(4)], dataset.y_train[:4]
    in_turn = set()
    for name in PRESETS:
        config = resolve(RunConfig(algorithm=name))
        knowledge = Knowledge(weights, [weights + 1], shared, own=[{"mu": weights}])
        perturbation = perturbation_for(config, knowledge, dataset, 2, [0])
        if not isinstance(perturbation, SteadyPerturbation):
            in_turn.add(name)
    assert in_turn == {"fedsmoo", "oracle"}


def test_a_source_says_one_thing() -> None:
    given, shared = torch.zeros(1, 3), (torch.zeros(1, 1, 4, 4), torch.zeros(1))
    with pytest.raises(ArgumentError, match="given and shared are both there"):
        Source(given=given, shared=shared)
    for wrong in ({"own": True}, {"given": given}, {}):
        with pytest.raises(ArgumentError, match=r"beta is 0.5, but there are no two directions"):
            Source(**wrong, beta=0.5)


def test_other_rounds_are_made_in_turn(at_once: list[Tensor]) -> None:
    dataset = uint8_dataset()
    module = build_model("cnn", dataset.image_shape, CLASSES, seed=0)
    start, config = flat_weights(module), RunConfig(rho=0.1, lr=0.1)
    images = dataset.x_train.stored[..., 0].numpy()
    arrays = {"x_train": images / np.float32(255), "y_train": dataset.y_train.numpy()}
    floats = dataset_from_arrays("x", {**arrays, "x_test": arrays["x_train"], "y_test": arrays["y_train"]})
    draws = [np.zeros((2, 6), int)]
    for steps in (Steps(floats, draws), Steps(dataset, draws, 8)):  # float images; a padded batch
        Worker(module, CPU).train(start, LocalRound(steps, LocalGradient(), Correction()), config)
    other = nn.Sequential(nn.Flatten(), nn.Linear(256, CLASSES), nn.Tanh())  # no model that the extension knows
    work = LocalRound(Steps(dataset, draws), NoPerturbation(), Correction())
    Worker(other, CPU).train(flat_weights(other), work, config)
    worker = Worker(module, CPU)
    with backend.use_backend("reference"):
        worker.train(start, work, config)
    assert not at_once
    worker.train(start, work, config)
    assert len(at_once) == 1


def call(dataset: Dataset, **changes: Any) -> Tensor:
    module = build_model("cnn", dataset.image_shape, CLASSES, seed=0)
    network, weights = small_network(module), flat_weights(module)[None].clone()
    assert isinstance(network, SmallNetwork)
    images, indices = dataset.x_train, torch.arange(6).view(2, 3)
    batches = {"stored": images.stored, "shift": images.shift, "scale": images.scale, "labels": dataset.y_train,
               "indices": indices}  # fmt: skip
    options = {"weights": weights, "source": Source(own=True), "rho": 0.1, "lr": 0.1, "clip_norm": None,
               "gradient": torch.empty_like(weights), "ahead": torch.empty_like(weights)}  # fmt: skip
    batches |= {name: value for name, value in changes.items() if name in batches}
    options |= {name: value for name, value in changes.items() if name in options}
    return local_steps(network, batches=StoredBatches(**batches), **options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"indices": torch.tensor([[0, 60]])}, IndexError, "not from 0 to 59"),
        ({"indices": torch.tensor([[-1, 0]])}, IndexError, "not from 0 to 59"),
        ({"indices": torch.zeros(2, 3)}, ArgumentError, "indices has dtype torch.float32"),
        ({"indices": torch.zeros(3).long()}, ArgumentError, r"indices has shape \(3,\)"),
        ({"stored": torch.zeros(60, 16, 16, dtype=torch.uint8)}, ArgumentError, r"stored has shape \(60, 16, 16\)"),
        ({"stored": torch.zeros(60, 9, 16, 1, dtype=torch.uint8)}, ArgumentError, r"do not fit images of \[1, 9, 16\]"),
        ({"weights": torch.zeros(1, 100)}, ArgumentError, "weights is torch.float32 .* with 6116 values"),
        ({"gradient": torch.zeros(1, 100)}, ArgumentError, "gradient has shape"),
        ({"labels": torch.full((60,), CLASSES)}, ArgumentError, "none of the model's classes, 0 to 3"),
        ({"labels": torch.zeros(59, dtype=torch.int64)}, ArgumentError, r"labels has shape \(59,\)"),
        ({"shift": torch.zeros(2)}, ArgumentError, r"shift has shape \(2,\)"),
        ({"rho": float("nan")}, ArgumentError, "rho is nan"),
        ({"clip_norm": float("inf")}, ArgumentError, "clip_norm is inf"),
        ({"lr": float("inf")}, ArgumentError, "lr is inf"),
        ({"ahead": torch.zeros(1, 3)}, ArgumentError, "ahead has shape"),
        ({"source": Source(given=torch.zeros(1, 3))}, ArgumentError, "given has shape"),
        ({"source": Source(shared=(torch.zeros(2, 1, 16, 16), torch.zeros(3)))}, ArgumentError, "labels are"),
        ({"source": Source(shared=(torch.zeros(0, 1, 16, 16), torch.zeros(0).long()))}, ArgumentError, "images are"),
        (
            {"source": Source(shared=(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64, device="meta")))},
            ArgumentError,
            "must be on the CPU",
        ),
        ({"source": Source(shared=(torch.zeros(2, 1, 16, 15), torch.zeros(2).long()))}, ArgumentError, "shared images"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    dataset = uint8_dataset()
    assert call(dataset).shape == (2,)
    with pytest.raises(error, match=message):
        call(dataset, **changes)


def test_a_buffer_that_is_another() -> None:
    one = flat_weights(build_model("cnn", (1, 16, 16), CLASSES, seed=0))[None].clone()
    with pytest.raises(ArgumentError, match="overlaps weights"):
        call(uint8_dataset(), weights=one, ahead=one)
