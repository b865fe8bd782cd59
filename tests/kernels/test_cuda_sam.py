"""The CUDA sam kernels, emulated on the CPU thread by thread, against the reference.

Elementwise results must equal the reference bit for bit, given the same norm; a norm may differ by one float32 unit
in the last place. Misaligned wide loads abort (-fsanitize=alignment); what lies before and after the outputs must
stay; outputs start as NaN.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsynsam.kernels.reference import sam as reference

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ULP = 2.0**-23
GUARD = 8  # elements around each tensor

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is needed to compile the emulation")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("emulated") / "sam.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fsanitize=alignment",
             "-fno-sanitize-recover=alignment", "-Wno-unknown-pragmas", "-fPIC", "-shared"]  # fmt: skip
    defines = ["-DFEDSYNSAM_CUDA", "-DFEDSYNSAM_EMULATION", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    source = Path(__file__).with_name("emulated_sam.cpp")
    command = ["g++", *flags, *defines, str(source), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = ctypes.CDLL(str(target))
    loaded.partials.restype = ctypes.c_int64
    return loaded


class Guarded:
    """A row batch between guard elements, `shift` elements past a 16-byte boundary."""

    def __init__(self, values: Tensor, shift: int = 0) -> None:
        n = values.numel()
        self.storage = torch.full((n + 2 * GUARD + 8,), 77.0, dtype=values.dtype)
        skip = -self.storage.data_ptr() % 16 // values.element_size()
        self.begin, self.end = skip + GUARD + shift, skip + GUARD + shift + n
        self.tensor = self.storage[self.begin : self.end].view(values.shape).copy_(values)

    def intact(self) -> bool:
        return bool((self.storage[: self.begin] == 77).all() and (self.storage[self.end :] == 77).all())


def c(value: object) -> object:
    """Convert an argument for ctypes: tensors to addresses, None to null."""
    if isinstance(value, Guarded):
        return ctypes.c_void_p(value.tensor.data_ptr())
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)


def call(function, *arguments: object) -> None:
    assert function(*map(c, arguments)) == 0


def assert_bits(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.view(torch.int32), expected.view(torch.int32), rtol=0, atol=0)


def draw(rows: int, n: int, dtype: torch.dtype = torch.float32, shift: int = 0) -> Guarded:
    return Guarded(torch.randn(rows, n).to(dtype), shift)


def check_direction(library, rows, n, dtype, adaptive, beta, shift) -> None:
    w, g = draw(rows, n, shift=shift), draw(rows, n, dtype, shift)
    synthetic = None if beta is None else draw(rows, n, dtype, shift)
    options = {"beta": 1.0 if beta is None else beta, "adaptive": adaptive}
    scratch = torch.full((rows * library.partials(ctypes.c_int64(n)),), math.nan, dtype=torch.float64)
    norm, out = Guarded(torch.full((rows,), math.nan)), Guarded(torch.full((rows, n), math.nan), shift)
    source = (w, g, synthetic, DTYPES[dtype], options["beta"], int(adaptive), rows, n)
    plain = (w.tensor, g.tensor, None if synthetic is None else synthetic.tensor)

    call(library.norm, *source, scratch, norm)
    torch.testing.assert_close(norm.tensor, reference.sam_norm(*plain, **options), rtol=ULP, atol=0)
    expected = reference.sam_perturb(*plain, rho=0.05, norm=norm.tensor, **options)
    for given in (norm, None):
        out.tensor.fill_(math.nan)
        call(library.perturb, *source, 0.05, given, scratch.fill_(math.nan), out)
        assert_bits(out.tensor, expected)
    assert norm.intact()
    assert out.intact()


def check_step(library, rows, n, dtype, decay, corrected, momentum, shift) -> None:
    w, g = draw(rows, n, shift=shift), draw(rows, n, dtype, shift)
    correction = draw(rows, n, shift=shift) if corrected else None
    buffer = draw(rows, n, shift=shift) if momentum else None
    expected, expected_buffer = reference.sam_step(
        w.tensor, g.tensor, correction and correction.tensor, buffer and buffer.tensor,
        lr=0.1, weight_decay=decay, momentum=momentum,
    )  # fmt: skip
    call(library.step, w, g, DTYPES[dtype], correction, buffer, 0.1, decay, momentum, rows, n)
    assert_bits(w.tensor, expected)
    assert w.intact()
    if buffer is not None:
        assert_bits(buffer.tensor, expected_buffer)
        assert buffer.intact()


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 13), (1, 4096), (2, 4099), (1, 8191)])
def test_equals_the_reference(library, rows, n, dtype, shift):
    torch.manual_seed(n)
    for adaptive, beta in ((False, None), (False, 0.3), (True, 0.3)):
        check_direction(library, rows, n, dtype, adaptive, beta, shift)
    for decay, corrected, momentum in itertools.product((0.0, 0.01), (False, True), (0.0, 0.9)):
        check_step(library, rows, n, dtype, decay, corrected, momentum, shift)


@pytest.mark.slow
def test_many_partials_take_a_launch_of_their_own(library):
    torch.manual_seed(0)
    check_direction(library, 1, 4096 * 1024 + 5, torch.float32, False, None, 0)


def test_special_rows(library):
    w = Guarded(torch.tensor([[1.0, -0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]))
    g = Guarded(torch.tensor([[0.0, -0.0], [1e-42, 0.0], [math.nan, 1.0], [math.inf, 1.0]]))
    out, scratch = Guarded(torch.zeros(4, 2)), torch.empty(4, dtype=torch.float64)
    call(library.perturb, w, g, None, 0, 1.0, 0, 4, 2, 100.0, None, scratch, out)
    assert_bits(out.tensor[0], w.tensor[0])
    assert torch.isfinite(out.tensor[1]).all()
    assert out.tensor[2:].isnan().all()


def test_empty_rows_have_norm_zero(library):
    norm, empty = Guarded(torch.full((2,), math.nan)), torch.empty(0)
    call(library.norm, empty, empty, None, 0, 1.0, 0, 2, 0, empty, norm)
    assert norm.tensor.tolist() == [0.0, 0.0]
    call(library.perturb, empty, empty, None, 0, 1.0, 0, 2, 0, 0.1, None, empty, empty)
    call(library.step, empty, empty, 0, None, None, 0.1, 0.0, 0.0, 2, 0)


def test_a_grid_too_large_is_refused(library):
    arguments = (None, None, None, 0, 1.0, 0, 1 << 31, 1, None, None)
    assert library.norm(*map(c, arguments)) == -1
