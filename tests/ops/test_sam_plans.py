"""Plans of the SAM pair do what the public functions do, with the values of the time of the call."""

from __future__ import annotations

import pytest
import torch

from fedsynsam.errors import ArgumentError
from fedsynsam.ops import sam_perturb, sam_step
from fedsynsam.ops.backend import extension, use_backend
from fedsynsam.ops.sam_plans import plan_perturb, plan_step

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(extension is None, reason="the C++ extension is not built here")),
]


def draw(seed: int, rows: int = 3, n: int = 1000) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_a_planned_perturbation_is_the_function(backend: str, beta: float) -> None:
    weights, gradient, out = draw(0), draw(1), torch.empty(3, 1000)
    synthetic = None if beta == 1.0 else draw(2)
    with use_backend(backend):
        plan = plan_perturb(weights, gradient, rho=0.1, synthetic=synthetic, beta=beta, out=out)
        for seed in (3, 4):
            weights.copy_(draw(seed))
            gradient.copy_(draw(seed + 10))
            plan()
            expected = sam_perturb(weights, gradient, rho=0.1, synthetic=synthetic, beta=beta)
            assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_planned_step_is_the_function(backend: str, momentum: float, corrected: bool) -> None:
    weights, gradient, correction = draw(0), draw(1), draw(2) if corrected else None
    buffer = torch.zeros_like(weights) if momentum else None
    other, other_buffer = weights.clone(), torch.zeros_like(weights) if momentum else None
    rates = {"lr": 0.1, "weight_decay": 0.01, "momentum": momentum}
    with use_backend(backend):
        plan = plan_step(weights, gradient, **rates, momentum_buffer=buffer, correction=correction)
        for seed in (3, 4):
            gradient.copy_(draw(seed))
            plan()
            sam_step(other, gradient, **rates, momentum_buffer=other_buffer, correction=correction)
            assert torch.equal(weights, other)
    if buffer is not None and other_buffer is not None:
        assert torch.equal(buffer, other_buffer)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_not_contiguous_is_read_when_the_plan_is_called(backend: str) -> None:
    weights, wide, out = draw(0), torch.zeros(1000, 3), torch.empty(3, 1000)
    with use_backend(backend):
        plan = plan_perturb(weights, wide.T, rho=0.1, out=out)
        wide.copy_(draw(1).T)
        plan()
        assert torch.equal(out, sam_perturb(weights, wide.T, rho=0.1))


def test_a_plan_refuses_at_once_what_the_functions_refuse() -> None:
    weights, gradient = draw(0), draw(1)
    with pytest.raises(ArgumentError, match="gradient has shape"):
        plan_perturb(weights, gradient[:2], rho=0.1, out=torch.empty_like(weights))
    with pytest.raises(ArgumentError, match="rho is inf"):
        plan_perturb(weights, gradient, rho=float("inf"), out=torch.empty_like(weights))
    with pytest.raises(ArgumentError, match="momentum_buffer was not given"):
        plan_step(weights, gradient, lr=0.1, momentum=0.9)


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built here")
def test_a_plan_refuses_overlap_at_once() -> None:
    weights = draw(0)
    with pytest.raises(ArgumentError, match="out overlaps weights"):
        plan_perturb(weights, draw(1), rho=0.1, out=weights)
    with pytest.raises(ArgumentError, match="weights overlaps gradient"):
        plan_step(weights, weights, lr=0.1)


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built here")
def test_a_plan_keeps_its_tensors_alive() -> None:
    weights, out = draw(0), torch.empty(3, 1000)
    plan = plan_perturb(weights, draw(1), rho=0.1, out=out)  # nobody else holds the gradient
    taken = [draw(seed) for seed in range(20)]  # would get its memory
    plan()
    assert torch.equal(out, sam_perturb(weights, draw(1), rho=0.1))
    assert len(taken) == 20
