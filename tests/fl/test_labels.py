"""A client's mix of labels, estimated from its update."""

import numpy as np
import pytest
import torch

from fedsynsam.compress import compressor
from fedsynsam.fl.client import LocalRound
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.evidence import Evidence
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.labels import LabelMix
from fedsynsam.fl.models import build_model
from fedsynsam.fl.perturbation import NoPerturbation
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.synthesis import learn
from fedsynsam.fl.workers import Worker


def update_of(dataset: Dataset, module: torch.nn.Module, shares: list[float]) -> torch.Tensor:
    """What ten local steps on examples with these shares of labels make of the weights."""
    rng, labels = np.random.default_rng(0), dataset.y_train.numpy()
    drawn = rng.choice(len(shares), 160, p=shares)
    members = np.array([rng.choice(np.flatnonzero(labels == label)) for label in drawn])
    start = flat_weights(module)
    work = LocalRound(Steps(dataset, [members.reshape(10, 16)]), NoPerturbation(), Correction())
    return Worker(module, torch.device("cpu")).train(start, work, RunConfig(lr=0.02))[0][0]


@pytest.mark.parametrize("spec", ["none", "topk:0.05", "quantize:2"])
@pytest.mark.parametrize("shares", [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], ids=str)
def test_the_mix_is_found_even_in_compressed_updates(tiny_dataset, shares, spec) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    update = update_of(tiny_dataset, module, shares)
    sender = compressor(spec)
    received = sender.compress(update, sender.init(update), seed=0)[0].decompress()
    mix = LabelMix.of(module, tiny_dataset.classes)(received)
    assert float(mix.sum()) == pytest.approx(1.0)
    assert float(mix.min()) >= 0.0
    assert float((mix - torch.tensor(shares)).abs().sum() / 2) < 0.25, mix


def test_the_formula() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 2), torch.nn.Linear(2, 3))
    update = torch.zeros(12 + 9)
    update[12:18] = torch.tensor([1.0, 1.0, -1.0, 0.5, 0.5, 0.25])  # rows sum to 2, -0.5, 0.75
    update[18:21] = torch.tensor([1.0, 0.0, 0.25])
    torch.testing.assert_close(LabelMix.of(module, 3)(update), torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(LabelMix.of(module, 3)(-update.abs()), torch.full((3,), 1 / 3))


ENDS = [
    torch.nn.Linear(4, 3, bias=False),
    torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(4, 2)),
    torch.nn.Conv2d(1, 3, 2),
    torch.nn.ReLU(),
]


@pytest.mark.parametrize("module", ENDS, ids=lambda module: type(module).__name__)
def test_nothing_is_told_from_another_end(module, tiny_dataset) -> None:
    assert LabelMix.of(module, 3) is None


def test_with_another_end_all_images_count_equally(tiny_dataset) -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3, bias=False))
    evidence, weights = Evidence(5, LabelMix.of(flat, 3)), flat_weights(flat)
    update = torch.full_like(weights, -0.01)
    for number in range(4):
        evidence.add(number, weights + number * update, [update])
    config = RunConfig(synthetic_start=3, synthetic_steps=5, synthetic_images=1)
    learned, loss = learn(config, flat, tiny_dataset, evidence, None, 3)
    assert 0 < loss < 2
    assert bool(torch.isfinite(learned.images).all())
