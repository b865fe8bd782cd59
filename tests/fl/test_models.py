"""Models and their flat vectors."""

import pytest
import torch
import torch.nn.functional as functional

from fedsynsam.errors import ConfigError
from fedsynsam.fl.flat import FlatModel, flat_weights
from fedsynsam.fl.models import build_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "shape", "classes", "size"),
    [("cnn", (1, 28, 28), 10, 37_610), ("mlp", (1, 8, 8), 3, 4_355), ("resnet18", (3, 32, 32), 100, 11_220_132)],
)
def test_sizes_and_outputs(name, shape, classes, size) -> None:
    module = build_model(name, shape, classes, seed=0)
    assert sum(parameter.numel() for parameter in module.parameters()) == size
    assert not list(module.buffers())
    with torch.no_grad():
        assert module(torch.randn(2, *shape)).shape == (2, classes)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = flat_weights(build_model("cnn", (1, 28, 28), 10, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, flat_weights(build_model("cnn", (1, 28, 28), 10, seed=5)))
    assert not torch.equal(first, flat_weights(build_model("cnn", (1, 28, 28), 10, seed=6)))


def test_unknown_and_too_small() -> None:
    with pytest.raises(ConfigError, match="known: cnn, mlp, resnet18"):
        build_model("vgg", (1, 28, 28), 10, seed=0)
    with pytest.raises(ConfigError, match="at least 16x16"):
        build_model("cnn", (1, 8, 8), 10, seed=0)


def test_flat_model_reads_and_writes_the_flat_vectors() -> None:
    torch.manual_seed(0)
    module = build_model("cnn", (1, 16, 16), 4, seed=0)
    flat = FlatModel(module, CPU)
    assert torch.equal(flat.weights[0], flat_weights(module))
    images, labels = torch.randn(6, 1, 16, 16), torch.tensor([0, 1, 2, 3, 0, 1])
    flat.gradient.fill_(torch.nan)
    loss = flat.backward((images, labels))
    expected = functional.cross_entropy(module(images), labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach().view(1))
    torch.testing.assert_close(
        flat.gradient[0], torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])
    )
    flat.weights.zero_()
    assert float(flat.backward((images, labels))) == pytest.approx(torch.tensor(4.0).log().item())


def test_flat_models_share_nothing() -> None:
    module = build_model("mlp", (1, 4, 4), 2, seed=0)
    first, second = FlatModel(module, CPU), FlatModel(module, CPU)
    first.weights.zero_()
    assert torch.equal(second.weights[0], flat_weights(module))
