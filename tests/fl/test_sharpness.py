"""Lanczos and Hutchinson on matrices whose spectrum is known, and on a smooth model."""

import numpy as np
import pytest
import torch
from torch import nn

import fedsynsam as fs
from fedsynsam.fl.flat import flat_weights
from fedsynsam.fl.matching import FlatLoss
from fedsynsam.fl.sharpness import Sharpness, hutchinson_trace, largest_eigenvalues
from fedsynsam.fl.slices import Slices, filter_normalised


def symmetric(spectrum: np.ndarray, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(spectrum), len(spectrum))))
    return torch.from_numpy(basis @ np.diag(spectrum) @ basis.T).float()


@pytest.mark.parametrize(
    "spectrum",
    [
        np.linspace(-1, 5, 200),
        np.concatenate([np.full(150, 0.01), [-30.0, 7.0, 9.0]]),  # the largest in magnitude is negative
        np.array([3.0]),
        np.array([2.0, 2.0, 2.0]),
        np.array([4.0, -1.0]),
    ],
)
def test_largest_eigenvalue_of_a_quadratic(spectrum) -> None:
    matrix = symmetric(spectrum)
    start = torch.from_numpy(np.random.default_rng(1).normal(size=len(spectrum))).float()
    [found] = largest_eigenvalues(lambda vector: matrix @ vector, start)
    assert found == pytest.approx(spectrum.max(), rel=5e-3, abs=5e-3)


def test_several_eigenvalues_in_descending_order() -> None:
    spectrum = np.concatenate([np.linspace(0, 1, 100), [4.0, 6.0, 8.0]])
    matrix = symmetric(spectrum)
    start = torch.from_numpy(np.random.default_rng(1).normal(size=len(spectrum))).float()
    found = largest_eigenvalues(lambda vector: matrix @ vector, start, count=3)
    assert found == pytest.approx([8.0, 6.0, 4.0], rel=1e-2)


def test_a_repeated_eigenvalue_is_found_once() -> None:
    matrix, start = torch.diag(torch.tensor([5.0, 5.0, 2.0, 1.0])), torch.ones(4)
    found = largest_eigenvalues(lambda vector: matrix @ vector, start, count=4)
    assert found == pytest.approx([5.0, 2.0, 1.0], abs=1e-4)


def test_many_eigenvalues_take_as_many_products_as_they_need() -> None:
    """The last ones settle long after the first: 60 products would give values that are no eigenvalues."""
    spectrum = np.linspace(0, 10, 400) ** 2
    matrix = symmetric(spectrum)
    start = torch.from_numpy(np.random.default_rng(1).normal(size=len(spectrum))).float()
    found = largest_eigenvalues(lambda vector: matrix @ vector, start, count=40)
    assert found == pytest.approx(sorted(spectrum, reverse=True)[:40], abs=0.2)


def test_values_that_did_not_settle_are_told() -> None:
    matrix = symmetric(np.linspace(0, 1, 200))
    with pytest.warns(UserWarning, match="the 5 largest eigenvalues did not settle in 10 products"):
        largest_eigenvalues(lambda vector: matrix @ vector, torch.ones(200), count=5, most=10)


def test_zero_operator() -> None:
    assert largest_eigenvalues(torch.zeros_like, torch.ones(5)) == [0.0]


def test_weights_that_diverged_are_named(tiny_dataset) -> None:
    with pytest.raises(fs.NonFiniteError, match="smaller lr or rho"):
        largest_eigenvalues(lambda vector: vector / 0.0, torch.ones(5))
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(fs.NonFiniteError, match="diverged"):
        Sharpness(module, tiny_dataset, seed=0).largest(torch.full((195,), 1e38))


def test_trace() -> None:
    spectrum = np.linspace(0, 1, 50)
    matrix = symmetric(spectrum)
    estimate = hutchinson_trace(lambda vector: matrix @ vector, torch.empty(50), np.random.default_rng(0), probes=400)
    deviation = np.sqrt(2 * (spectrum**2).sum() / 400)  # variance of a probe is at most 2·‖A‖²
    assert abs(estimate - spectrum.sum()) < 4 * deviation


def test_hessian_of_a_smooth_model(tiny_dataset) -> None:
    """Against central differences of the gradient; softmax regression has no kinks that would disturb them."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    weights = torch.randn(195, generator=torch.Generator().manual_seed(1)) * 0.1
    sharpness = Sharpness(module, tiny_dataset, seed=0, sample=1000)  # more than there are: all are taken
    vector = torch.randn(195, generator=torch.Generator().manual_seed(0))
    vector /= vector.norm()
    loss, step = FlatLoss(module), 1e-2
    ahead, behind = (
        loss.gradient(weights + sign * step * vector, tiny_dataset.x_train[:], tiny_dataset.y_train).detach()
        for sign in (1, -1)
    )
    product = sharpness.product(weights)(vector)
    torch.testing.assert_close(product, (ahead - behind) / (2 * step), atol=1e-3, rtol=1e-2)
    columns = [sharpness.product(weights)(row) for row in torch.eye(195)]
    expected = torch.linalg.eigvalsh(torch.stack(columns).double())[-1]
    assert sharpness.largest(weights)[0] == pytest.approx(float(expected), rel=2e-3)
    assert sharpness.largest(weights) == sharpness.largest(weights)


def test_hessian_of_a_tiny_network_against_the_dense_one(tiny_dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh(), nn.Linear(2, 3))
    size = sum(parameter.numel() for parameter in module.parameters())
    weights = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 0.3
    sharpness = Sharpness(module, tiny_dataset, seed=0, sample=1000)
    loss = FlatLoss(module)
    dense = torch.autograd.functional.hessian(lambda point: loss(point, *sharpness.sample), weights)
    spectrum = np.linalg.eigvalsh(dense.double().numpy())[::-1]
    assert sharpness.largest(weights, 5) == pytest.approx(spectrum[:5], rel=1e-2, abs=1e-3 * spectrum[0])
    columns = torch.stack([sharpness.product(weights)(unit) for unit in torch.eye(size)[:7]])
    torch.testing.assert_close(columns, dense[:7], rtol=1e-3, atol=1e-5)


def test_slices_of_a_quadratic() -> None:
    """The loss −log softmax of a linear model, at the places where it is known."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    weights = flat_weights(module)
    sample = torch.randn(50, 1, 2, 2), torch.arange(50) % 2
    slices = Slices(module, sample, weights, seed=3)
    places = np.linspace(-1, 1, 5)
    line, plane = slices.line(places), slices.plane(places)
    here = float(FlatLoss(module)(weights, *sample).detach())
    assert line[2] == pytest.approx(here, rel=1e-5)
    assert plane[2] == pytest.approx(line)  # the middle row goes along the first direction
    assert plane[2, 2] == pytest.approx(here, rel=1e-5)
    assert (np.diff(line, 2) > 0).all()  # convex in the weights
    assert Slices(module, sample, weights, seed=3).line(places) == pytest.approx(line)


def test_directions_have_the_norms_of_the_filters() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    weights = flat_weights(module)
    direction = filter_normalised(module, weights, np.random.default_rng(0))
    kernels, bias = direction[:54].view(3, 18), direction[54:57]
    torch.testing.assert_close(kernels.norm(dim=1), module[0].weight.detach().view(3, 18).norm(dim=1))
    assert (bias == 0).all()
    rows = direction[57 : 57 + 48].view(4, 12)
    torch.testing.assert_close(rows.norm(dim=1), module[2].weight.detach().norm(dim=1))
