"""Checks the Triton sam kernels in Triton's interpreter; test_triton_sam.py runs it with TRITON_INTERPRET=1.

Elementwise results must equal the reference bit for bit, given the same norm; a norm may differ by one float32 unit
in the last place (float64 sums in another order). Outputs start as NaN, so that an unwritten element fails.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from fedsynsam.kernels import launch
from fedsynsam.kernels.reference import sam as reference
from fedsynsam.kernels.triton import sam as kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 255), (2, 8193))
ULP = 2.0**-23


def draw(rows: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, n).to(dtype)


def same_bits(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.view(torch.int32), expected.view(torch.int32), rtol=0, atol=0)


def check_direction(rows: int, n: int, dtype: torch.dtype, adaptive: bool, beta: float | None) -> None:
    w, g, s = draw(rows, n), draw(rows, n, dtype), draw(rows, n, dtype)
    synthetic, weight = (None, 1.0) if beta is None else (s, beta)
    norm, out = torch.full((rows,), math.nan), torch.full((rows, n), math.nan)
    kernels.norm_into(w, g, synthetic, weight, adaptive, norm)
    options = {"beta": weight, "adaptive": adaptive}
    torch.testing.assert_close(norm, reference.sam_norm(w, g, synthetic, **options), rtol=ULP, atol=0)
    expected = reference.sam_perturb(w, g, synthetic, rho=0.05, norm=norm, **options)
    for given in (None, norm):
        kernels.perturb_into(w, g, synthetic, given, 0.05, weight, adaptive, out.fill_(math.nan))
        same_bits(out, expected)


def check_step(rows: int, n: int, dtype: torch.dtype, decay: float, corrected: bool, momentum: float) -> None:
    w, g = draw(rows, n), draw(rows, n, dtype)
    correction = draw(rows, n) if corrected else None
    buffer = draw(rows, n) if momentum else None
    options = {"lr": 0.1, "weight_decay": decay, "momentum": momentum}
    expected, expected_buffer = reference.sam_step(w, g, correction, buffer, **options)
    kernels.step_into(w, g, correction, buffer, 0.1, decay, momentum)
    same_bits(w, expected)
    if buffer is not None:
        same_bits(buffer, expected_buffer)


def check_special_rows() -> None:
    w = torch.tensor([[1.0, -0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    g = torch.tensor([[0.0, -0.0], [1e-42, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    out, norm = torch.full_like(w, 7.0), torch.full((4,), 7.0)
    kernels.norm_into(w, g, None, 1.0, False, norm)
    assert norm[0] == 0
    assert 0 < norm[1] < 1e-41
    assert not torch.isfinite(norm[2:]).any()
    kernels.perturb_into(w, g, None, None, 100.0, 1.0, False, out)
    same_bits(out[0], w[0])
    assert torch.isfinite(out[1]).all()
    assert out[2:].isnan().all()


def check_many_partials() -> None:
    """Rows of so many chunks that the norm takes a launch of its own."""
    original = launch.sam
    launch.sam = lambda n: launch.SamLaunch(256, 1, -(-n // 256), 1)
    try:
        check_direction(3, 5003, torch.float32, adaptive=False, beta=None)
        check_direction(2, 5003, torch.bfloat16, adaptive=True, beta=0.3)
    finally:
        launch.sam = original


def check_empty() -> None:
    empty, norm = torch.empty(2, 0), torch.full((2,), math.nan)
    kernels.norm_into(empty, empty, None, 1.0, False, norm)
    assert norm.tolist() == [0.0, 0.0]
    kernels.perturb_into(empty, empty, None, None, 0.1, 1.0, False, empty.clone())
    kernels.step_into(empty, empty.clone(), None, None, 0.1, 0.0, 0.0)


def main() -> None:
    torch.manual_seed(0)
    for (rows, n), dtype in itertools.product(SHAPES, DTYPES):
        for adaptive, beta in itertools.product((False, True), (None, 0.3)):
            check_direction(rows, n, dtype, adaptive, beta)
        for decay, corrected, momentum in itertools.product((0.0, 0.01), (False, True), (0.0, 0.9)):
            check_step(rows, n, dtype, decay, corrected, momentum)
    check_special_rows()
    check_many_partials()
    check_empty()
    print("all equal")


if __name__ == "__main__":
    main()
