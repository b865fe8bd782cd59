"""The CUDA sam kernels, emulated on the CPU thread by thread, against the reference.

Elementwise results must equal the reference bit for bit, given the same norm; a norm may differ by one float32 unit
in the last place. Misaligned wide loads abort; what lies before and after the outputs must stay; outputs start as NaN.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from emulation import Guarded, assert_bits, emulated, library
from torch import Tensor

from fedsynsam.errors import BackendError
from fedsynsam.kernels.reference import sam as reference
from fedsynsam.ops import extension, sam_norm, sam_perturb, sam_step

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ULP = 2.0**-23


def draw(rows: int, n: int, dtype: torch.dtype = torch.float32, shift: int = 0) -> Guarded:
    return Guarded(torch.randn(rows, n).to(dtype), shift)


def check_direction(rows, n, dtype, adaptive, beta, shift) -> None:
    w, g = draw(rows, n, shift=shift).tensor, draw(rows, n, dtype, shift).tensor
    options = {"adaptive": adaptive}
    if beta is not None:
        options |= {"beta": beta, "synthetic": draw(rows, n, dtype, shift).tensor}
    norm, out = Guarded(torch.full((rows,), math.nan)), Guarded(torch.full((rows, n), math.nan), shift)
    with emulated():
        sam_norm(w, g, out=norm.tensor, **options)
    torch.testing.assert_close(norm.tensor, reference.sam_norm(w, g, **options), rtol=ULP, atol=0)
    expected = reference.sam_perturb(w, g, rho=0.05, norm=norm.tensor, **options)
    for given in (norm.tensor, None):
        with emulated():
            sam_perturb(w, g, rho=0.05, norm=given, out=out.tensor.fill_(math.nan), **options)
        assert_bits(out.tensor, expected)
    assert norm.intact()
    assert out.intact()


def check_step(rows, n, dtype, decay, corrected, momentum, shift) -> None:
    w, g = draw(rows, n, shift=shift), draw(rows, n, dtype, shift).tensor
    correction = draw(rows, n, shift=shift).tensor if corrected else None
    buffer = draw(rows, n, shift=shift) if momentum else None
    written = buffer and buffer.tensor
    options = {"lr": 0.1, "weight_decay": decay, "momentum": momentum}
    expected, expected_buffer = reference.sam_step(w.tensor, g, correction, written, **options)
    with emulated():
        sam_step(w.tensor, g, correction=correction, momentum_buffer=written, **options)
    assert_bits(w.tensor, expected)
    assert w.intact()
    if buffer is not None:
        assert_bits(buffer.tensor, expected_buffer)
        assert buffer.intact()


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 13), (1, 4096), (2, 4099), (1, 8191)])
def test_equals_the_reference(rows, n, dtype, shift):
    torch.manual_seed(n)
    for adaptive, beta in ((False, None), (False, 0.3), (True, 0.3)):
        check_direction(rows, n, dtype, adaptive, beta, shift)
    for decay, corrected, momentum in itertools.product((0.0, 0.01), (False, True), (0.0, 0.9)):
        check_step(rows, n, dtype, decay, corrected, momentum, shift)


@pytest.mark.slow
def test_many_partials_take_a_launch_of_their_own():
    torch.manual_seed(0)
    check_direction(1, 4096 * 1024 + 5, torch.float32, False, None, 0)


def test_special_rows():
    w = torch.tensor([[1.0, -0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    g = torch.tensor([[0.0, -0.0], [1e-42, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    with emulated():
        out = sam_perturb(w, g, rho=100.0)
    assert_bits(out[0], w[0])
    assert torch.isfinite(out[1]).all()
    assert out[2:].isnan().all()


def test_empty_rows_have_norm_zero():
    empty = torch.empty(2, 0)
    with emulated():
        assert sam_norm(empty, empty).tolist() == [0.0, 0.0]
        sam_perturb(empty, empty, rho=0.1, out=torch.empty(2, 0))
        sam_step(empty, empty, lr=0.1)


def test_a_grid_too_large_is_refused():
    arguments = (0, 0, 0, 0, 1.0, False, 1 << 31, 1, 0, 0)
    assert library().sam_norm_cuda(*arguments, 0) == -1
    with emulated(), pytest.raises(BackendError, match=r"sam_norm on \(3, 2\): more than 2\^31 - 1 thread blocks"):
        extension.launch("sam_norm", Tensor(3, 2), *arguments)
