"""A client's mix of labels, estimated from its update."""

import numpy as np
import pytest
import torch

from fedsynsam.compress import compressor
from fedsynsam.fl.client import LocalRound
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.correction import Correction
from fedsynsam.fl.data import Dataset
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.labels import LabelMix
from fedsynsam.fl.models import build_model
from fedsynsam.fl.perturbation import NoPerturbation
from fedsynsam.fl.steps import Steps
from fedsynsam.fl.workers import Worker


def update_of(dataset: Dataset, module: torch.nn.Module, shares: list[float]) -> torch.Tensor:
    """What ten local steps on examples with these shares of labels make of the weights."""
    rng, labels = np.random.default_rng(0), dataset.y_train.numpy()
    drawn = rng.choice(len(shares), 160, p=shares)
    members = np.array([rng.choice(np.flatnonzero(labels == label)) for label in drawn])
    work = LocalRound(Steps(dataset, [members.reshape(10, 16)]), NoPerturbation(), Correction())
    return Worker(module, torch.device("cpu")).train(flat_weights(module), work, RunConfig(lr=0.02))[0][0]


@pytest.mark.parametrize("spec", ["none", "topk:0.05", "quantize:2"])
@pytest.mark.parametrize("shares", [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], ids=str)
def test_the_mix_is_found_even_in_compressed_updates(tiny_dataset, shares, spec) -> None:
    module = build_model("mlp", tiny_dataset.image_shape, tiny_dataset.classes, seed=0)
    update = update_of(tiny_dataset, module, shares)
    sender = compressor(spec)
    received = sender.compress(update, sender.init(update), seed=0)[0].decompress()
    mix = LabelMix(module, tiny_dataset.classes)(received)
    assert float(mix.sum()) == pytest.approx(1.0)
    assert float(mix.min()) >= 0.0
    assert float((mix - torch.tensor(shares)).abs().sum() / 2) < 0.25, mix


def test_the_formula() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 2), torch.nn.Linear(2, 3))
    update = torch.zeros(12 + 9)
    update[12:18] = torch.tensor([1.0, 1.0, -1.0, 0.5, 0.5, 0.25])  # rows sum to 2, -0.5, 0.75
    update[18:21] = torch.tensor([1.0, 0.0, 0.25])
    torch.testing.assert_close(LabelMix(module, 3)(update), torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(LabelMix(module, 3)(-update.abs()), torch.full((3,), 1 / 3))


@pytest.mark.parametrize(
    "module", [torch.nn.Linear(4, 3, bias=False), torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.nn.Conv2d(1, 3, 2)]
)
def test_another_end_of_the_module_is_refused(module) -> None:
    with pytest.raises(ValueError, match="expected a linear layer's"):
        LabelMix(torch.nn.Sequential(torch.nn.Linear(2, 2), module), 3)
