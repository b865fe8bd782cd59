"""The Triton sam kernels, interpreted, against the reference.

Elementwise results must equal the reference bit for bit, given the same norm; a norm may differ by one float32 unit
in the last place (float64 sums in another order). Outputs start as NaN, so that an unwritten element fails.
"""

from __future__ import annotations

import itertools
import math
from unittest import mock

import pytest
import torch
from emulation import assert_bits
from interpretation import interpreted
from torch import Tensor

from fedsynsam.kernels import launch
from fedsynsam.kernels.reference import sam as reference
from fedsynsam.ops import sam_norm, sam_perturb, sam_step

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 255), (2, 8193))
ULP = 2.0**-23


def draw(rows: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, n).to(dtype)


def check_direction(rows: int, n: int, dtype: torch.dtype, adaptive: bool, beta: float | None) -> None:
    w, g = draw(rows, n), draw(rows, n, dtype)
    options = {"adaptive": adaptive}
    if beta is not None:
        options |= {"beta": beta, "synthetic": draw(rows, n, dtype)}
    norm, out = torch.full((rows,), math.nan), torch.full((rows, n), math.nan)
    with interpreted():
        sam_norm(w, g, out=norm, **options)
    torch.testing.assert_close(norm, reference.sam_norm(w, g, **options), rtol=ULP, atol=0)
    expected = reference.sam_perturb(w, g, rho=0.05, norm=norm, **options)
    for given in (None, norm):
        with interpreted():
            sam_perturb(w, g, rho=0.05, norm=given, out=out.fill_(math.nan), **options)
        assert_bits(out, expected)


def check_step(rows: int, n: int, dtype: torch.dtype, decay: float, corrected: bool, momentum: float) -> None:
    w, g = draw(rows, n), draw(rows, n, dtype)
    correction = draw(rows, n) if corrected else None
    buffer = draw(rows, n) if momentum else None
    options = {"lr": 0.1, "weight_decay": decay, "momentum": momentum}
    expected, expected_buffer = reference.sam_step(w, g, correction, buffer, **options)
    with interpreted():
        sam_step(w, g, correction=correction, momentum_buffer=buffer, **options)
    assert_bits(w, expected)
    if buffer is not None:
        assert_bits(buffer, expected_buffer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SHAPES)
def test_equals_the_reference(rows, n, dtype):
    torch.manual_seed(n)
    for adaptive, beta in itertools.product((False, True), (None, 0.3)):
        check_direction(rows, n, dtype, adaptive, beta)
    for decay, corrected, momentum in itertools.product((0.0, 0.01), (False, True), (0.0, 0.9)):
        check_step(rows, n, dtype, decay, corrected, momentum)


def test_special_rows():
    w = torch.tensor([[1.0, -0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    g = torch.tensor([[0.0, -0.0], [1e-42, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    with interpreted():
        norm, out = sam_norm(w, g), sam_perturb(w, g, rho=100.0)
    assert norm[0] == 0
    assert 0 < norm[1] < 1e-41
    assert not torch.isfinite(norm[2:]).any()
    assert_bits(out[0], w[0])
    assert torch.isfinite(out[1]).all()
    assert out[2:].isnan().all()


def test_many_partials_take_a_launch_of_their_own():
    with mock.patch.object(launch, "sam", lambda n: launch.SamLaunch(256, 1, -(-n // 256), 1)):
        check_direction(3, 5003, torch.float32, adaptive=False, beta=None)
        check_direction(2, 5003, torch.bfloat16, adaptive=True, beta=0.3)


def test_empty_rows():
    empty = torch.empty(2, 0)
    with interpreted():
        assert sam_norm(empty, empty).tolist() == [0.0, 0.0]
        sam_perturb(empty, empty, rho=0.1)
        sam_step(empty.clone(), empty, lr=0.1)
