"""Lanczos and Hutchinson on matrices whose spectrum is known, and on a smooth model."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsynsam.fl.matching import FlatLoss
from fedsynsam.fl.sharpness import Sharpness, hutchinson_trace, largest_eigenvalues


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


def test_zero_operator() -> None:
    assert largest_eigenvalues(torch.zeros_like, torch.ones(5)) == [0.0]


def test_trace() -> None:
    spectrum = np.linspace(0, 1, 50)
    matrix = symmetric(spectrum)
    estimate = hutchinson_trace(lambda vector: matrix @ vector, 50, np.random.default_rng(0), probes=400)
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
        loss.gradient(weights + sign * step * vector, tiny_dataset.x_train, tiny_dataset.y_train).detach()
        for sign in (1, -1)
    )
    product = sharpness.product(weights)(vector)
    torch.testing.assert_close(product, (ahead - behind) / (2 * step), atol=1e-3, rtol=1e-2)
    columns = [sharpness.product(weights)(row) for row in torch.eye(195)]
    expected = torch.linalg.eigvalsh(torch.stack(columns).double())[-1]
    assert sharpness.largest(weights)[0] == pytest.approx(float(expected), rel=2e-3)
    assert sharpness.largest(weights) == sharpness.largest(weights)
