"""Passes of small networks against PyTorch in float64: each instruction set, shape, kind of labels and weighting."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.func import functional_call

from fedsynsam.errors import ArgumentError
from fedsynsam.fl.flat import FlatModel, flat_weights
from fedsynsam.fl.models import build_model
from fedsynsam.fl.small import small_network
from fedsynsam.ops import backend
from fedsynsam.ops.network import SmallNetwork, gather_images

pytestmark = pytest.mark.skipif(backend.extension is None, reason="the C++ extension is not built")
INSTRUCTION_SETS = backend.extension.network_instruction_sets() if backend.extension is not None else []
CPU = torch.device("cpu")


def two_convolutions() -> nn.Sequential:
    return build_model("cnn", (1, 28, 28), 10, seed=3)  # type: ignore[return-value]


def one_convolution() -> nn.Sequential:
    """Odd sizes everywhere: an image's last row and column are in no window, no width is a multiple of a tile's."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 4 * 6, 37),
        nn.ReLU(),
        nn.Linear(37, 7),
    )


def dense() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 33), nn.ReLU(), nn.Linear(33, 19), nn.ReLU(), nn.Linear(19, 4))


NETWORKS = {
    "two convolutions": (two_convolutions, (1, 28, 28)),
    "one": (one_convolution, (3, 11, 15)),
    "dense": (dense, (3, 4, 4)),
}


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the passes use one instruction set; the best one again afterwards."""
    select = backend.extension.network_select_instruction_set  # type: ignore[union-attr]
    assert select(request.param)
    yield request.param
    select(INSTRUCTION_SETS[0])


def network_of(module: nn.Module) -> SmallNetwork:
    network = small_network(module)
    assert network is not None
    return network


def loss_of(module: nn.Module, weights: Tensor, images: Tensor, labels: Tensor, share: Tensor | None) -> Tensor:
    """The definition: cross-entropy of the outputs, by PyTorch."""
    pieces, parameters = weights.split([p.numel() for p in module.parameters()]), dict(module.named_parameters())
    own = {name: piece.view(parameters[name].shape) for name, piece in zip(parameters, pieces, strict=True)}
    outputs = functional_call(module, own, (images,))
    if share is None:
        return functional.cross_entropy(outputs, labels)
    return share @ functional.cross_entropy(outputs, labels, reduction="none")


def batch_of(
    shape: tuple[int, ...], count: int, classes: int, *, soft: bool, weighted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    rng = torch.Generator().manual_seed(count)
    images = torch.randn(count, *shape, generator=rng)
    if count % 2:
        images = images.to(memory_format=torch.channels_last)
    labels = (
        torch.rand(count, classes, generator=rng) if soft else torch.randint(classes, (count,), generator=rng)
    )  # soft ones that do not even sum to one
    return images, labels, torch.rand(count, generator=rng) if weighted else None


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Within float32 rounding of sums, in units of the largest element."""
    assert got.shape == expected.shape
    assert float((got.double() - expected).abs().max()) <= 5e-6 * float(expected.abs().max())


@pytest.mark.parametrize(("soft", "weighted"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("count", [1, 16, 33, 130])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_and_its_gradients(instruction_set: str, name: str, count: int, soft: bool, weighted: bool) -> None:
    make, shape = NETWORKS[name]
    module, classes = make(), list(make().modules())[-1].out_features
    weights = flat_weights(module)
    images, labels, share = batch_of(shape, count, classes, soft=soft, weighted=weighted)
    direction = torch.randn(len(weights), generator=torch.Generator().manual_seed(1))

    exact = [tensor.double().requires_grad_() for tensor in (weights, images)]
    targets = labels.double().requires_grad_() if soft else labels
    wanted = [*exact, *([targets] if soft else [])]
    loss = loss_of(copy.deepcopy(module).double(), *exact, targets, None if share is None else share.double())
    (gradient,) = torch.autograd.grad(loss, exact[0], create_graph=True)
    second = torch.autograd.grad(gradient @ direction.double(), wanted)

    network, out = network_of(module), torch.full_like(weights, torch.nan)
    assert_near(network.gradient(weights, images, labels, share, out=out), loss.detach())
    assert_near(out, gradient.detach())
    one, two = [], []
    for threads, results in ((1, one), (2, two)):
        own = [tensor.clone().requires_grad_() for tensor in (weights, images, *([labels] if soft else []))]
        given = own[2] if soft else labels
        found = network.differentiable_gradient(own[0], own[1], given, share, threads)
        results += [found.detach(), *torch.autograd.grad(found @ direction, own)]
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert torch.equal(one[0], out)
    for got, expected in zip(one[1:], second, strict=True):
        assert_near(got, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation(instruction_set: str, name: str) -> None:
    make, shape = NETWORKS[name]
    module = make()
    images, labels, _ = batch_of(shape, 75, list(module.modules())[-1].out_features, soft=False, weighted=False)
    right, loss = network_of(module).evaluate(flat_weights(module), images, labels)
    with torch.no_grad():
        outputs = module(images)
    assert int(right) == int((outputs.argmax(dim=1) == labels).sum())
    torch.testing.assert_close(loss, functional.cross_entropy(outputs, labels, reduction="sum"))


def test_of_equal_values_the_first_is_the_maximum(instruction_set: str) -> None:
    """On constant images all pixels of a window are equal: PyTorch, too, gives the gradient to the first."""
    module = two_convolutions()
    images, labels = torch.ones(3, 1, 28, 28), torch.tensor([0, 4, 9])
    with torch.no_grad():
        for layer in (module[0], module[3]):
            layer.weight.copy_((layer.weight * 64).round() / 64)  # sums are exact
            layer.bias.copy_((layer.bias * 64).round() / 64)
    gradient = torch.empty(37_610)
    network_of(module).gradient(flat_weights(module), images, labels, out=gradient)
    functional.cross_entropy(module(images), labels).backward()
    expected = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])
    assert_near(gradient, expected.double())
    assert torch.equal(gradient == 0, expected == 0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(instruction_set: str, bad: float) -> None:
    module = two_convolutions()
    images, labels, _ = batch_of((1, 28, 28), 20, 10, soft=False, weighted=False)
    images[7, 0, 14, 14] = bad
    gradient = torch.empty(37_610)
    loss = network_of(module).gradient(flat_weights(module), images, labels, out=gradient)
    assert not torch.isfinite(loss)
    assert not torch.isfinite(gradient).all()
    assert not torch.isfinite(network_of(module).evaluate(flat_weights(module), images, labels)[1])


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    module = two_convolutions()
    images, labels, _ = batch_of((1, 28, 28), 20, 10, soft=False, weighted=False)
    labels[13] = label
    network, weights = network_of(module), flat_weights(module)
    for call in (
        lambda: network.gradient(weights, images, labels, out=torch.empty_like(weights)),
        lambda: network.evaluate(weights, images, labels),
        lambda: network.differentiable_gradient(weights, images, labels, None, 2),
    ):
        with pytest.raises(ArgumentError, match="none of the model's classes, 0 to 9"):
            call()


def test_labels_of_another_kind_are_refused() -> None:
    """They would be read as what they are not."""
    module = two_convolutions()
    network, weights, images = network_of(module), flat_weights(module), torch.zeros(20, 1, 28, 28)
    out = torch.empty_like(weights)
    for labels in (
        torch.zeros(20, dtype=torch.int32),
        torch.zeros(19, dtype=torch.int64),
        torch.zeros(20, 10, dtype=torch.float64),
        torch.zeros(20, 9),
    ):
        with pytest.raises(ArgumentError, match=r"need classes, int64 \[20\], or soft labels, float32 \[20, 10\]"):
            network.gradient(weights, images, labels, out=out)
    right = torch.zeros(20, dtype=torch.int64)
    for share in (torch.zeros(19), torch.zeros(20, dtype=torch.float64)):
        with pytest.raises(ArgumentError, match=r"must be float32 \[20\]"):
            network.gradient(weights, images, right, share, out=out)
    with pytest.raises(ArgumentError, match="labels are soft"):
        network.evaluate(weights, images, torch.zeros(20, 10))
    with pytest.raises(ArgumentError, match="must be on the CPU"):
        network.gradient(weights, images, torch.zeros(20, dtype=torch.int64, device="meta"), out=out)


def test_vectors_and_images_that_do_not_fit_are_refused() -> None:
    """The extension would write beyond them."""
    module = two_convolutions()
    network, weights, images = network_of(module), flat_weights(module), torch.zeros(20, 1, 28, 28)
    right, out = torch.zeros(20, dtype=torch.int64), torch.empty_like(weights)
    assert network.size == len(weights)
    for wrong in (weights[:-1], weights.double(), torch.zeros(network.size, device="meta")):
        with pytest.raises(ArgumentError, match=f"weights is .* it must be float32 with {len(weights)} values"):
            network.gradient(wrong, images, right, out=out)
        with pytest.raises(ArgumentError, match=f"out is .* it must be float32 with {len(weights)} values"):
            network.gradient(weights, images, right, out=wrong)
    with pytest.raises(ArgumentError, match="weights is not contiguous"):
        network.gradient(torch.zeros(2 * network.size)[::2], images, right, out=out)
    with pytest.raises(ArgumentError, match=r"do not fit images of \[1, 28, 27\]"):
        network.gradient(weights, images[..., 1:], right, out=out)
    for wrong in (images[0], images.double(), images[:0]):
        with pytest.raises(ArgumentError, match=r"they must be float32 \[N, C, H, W\]"):
            network.gradient(weights, wrong, right[: len(wrong)], out=out)


def test_stored_images_of_another_kind_are_refused() -> None:
    stored, one = torch.zeros(3, 4, 4, 1, dtype=torch.uint8), torch.ones(1)
    assert gather_images(stored, torch.tensor([[2, 0]]), one, one).shape == (1, 2, 4, 4, 1)
    with pytest.raises(ArgumentError, match="indices has dtype"):
        gather_images(stored, torch.tensor([0], dtype=torch.int32), one, one)
    with pytest.raises(ArgumentError, match="stored has dtype"):
        gather_images(stored.float(), torch.tensor([0]), one, one)
    with pytest.raises(ArgumentError, match="scale has dtype"):
        gather_images(stored, torch.tensor([0]), one, one.double())
    with pytest.raises(ArgumentError, match=r"stored has shape \(3, 4, 4\)"):
        gather_images(stored[..., 0], torch.tensor([0]), one, one)
    with pytest.raises(ArgumentError, match="stored is not contiguous"):
        gather_images(stored[:, ::2], torch.tensor([0]), one, one)


def test_other_models_are_left_to_pytorch() -> None:
    def variant(**changes: object) -> nn.Sequential:
        options = {"padding": 0, "stride": 1, "bias": True, "kernel_size": 5, "dilation": 1, **changes}
        return nn.Sequential(nn.Conv2d(1, 8, **options), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

    assert small_network(variant()) == SmallNetwork(((1, 8, 5),), ((8, 3),))
    for change in ({"padding": 2}, {"stride": 2}, {"bias": False}, {"kernel_size": 7}, {"dilation": 2}):
        assert small_network(variant(**change)) is None
    pooled = nn.Sequential(nn.Conv2d(1, 8, 5), nn.MaxPool2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    swapped = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    for module in (
        pooled,
        swapped,
        variant().double(),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 3, bias=False)),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.Sequential(nn.Flatten(2), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(8, 3)),
        nn.Sequential(nn.Flatten()),
        build_model("resnet18", (3, 32, 32), 10, seed=0),
    ):
        assert small_network(module) is None
    with backend.use_backend("reference"):
        assert small_network(variant()) is None


def test_images_that_do_not_fit_get_pytorchs_message() -> None:
    network = network_of(two_convolutions())
    assert network.takes(torch.zeros(2, 1, 28, 28))
    for images in (
        torch.zeros(2, 3, 28, 28),
        torch.zeros(2, 1, 32, 32),
        torch.zeros(1, 28, 28),
        torch.zeros(2, 1, 5, 5),
    ):
        assert not network.takes(images)
    assert not network.takes(torch.zeros(2, 1, 28, 28, dtype=torch.float64))
    flat = FlatModel(two_convolutions(), CPU)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        flat.backward((torch.zeros(2, 1, 32, 32), torch.zeros(2, dtype=torch.int64)))


def test_the_flat_model_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the simulator's model never runs PyTorch's layers; with the reference it runs nothing else."""
    images, labels, _ = batch_of((1, 28, 28), 8, 10, soft=False, weighted=False)
    with backend.use_backend("reference"):
        reference = FlatModel(two_convolutions(), CPU)
    own = FlatModel(two_convolutions(), CPU)
    torch.testing.assert_close(own.backward((images, labels)), reference.backward((images, labels)))
    torch.testing.assert_close(own.gradient, reference.gradient)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *_: pytest.fail("PyTorch's convolution ran"))
    own.backward((images, labels))
    own.count_and_loss((images, labels))
    with pytest.raises(pytest.fail.Exception):
        reference.backward((images, labels))
