"""Runs the CUDA kernels on the CPU: builds csrc/cuda with csrc/emulation, and puts it behind the public operations.

Thread order is random, from FEDSYNSAM_EMULATION_SEED or anew in each run; the head of the test report names the seed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from unittest import mock

import pybind11
import torch
from torch import Tensor

from fedsynsam.ops import backend, extension

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("FEDSYNSAM_EMULATION_SEED") or int.from_bytes(os.urandom(2), "little"))
# Misaligned wide loads abort, arithmetic rounds as on the device.
FLAGS = (
    "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fsanitize=alignment",
    "-fno-sanitize-recover=alignment", "-Wno-unknown-pragmas", "-fPIC", "-DFEDSYNSAM_CUDA", "-DFEDSYNSAM_EMULATION",
)  # fmt: skip
GUARD = 16  # elements around each guarded tensor


@functools.cache
def library() -> ModuleType:
    """Build and load the emulated kernels; once a process."""
    includes = [str(ROOT / "csrc"), str(ROOT / "csrc" / "cuda"), pybind11.get_include(), sysconfig.get_path("include")]
    sources = [
        *sorted(ROOT.glob("csrc/cuda/*.cu")),
        ROOT / "csrc/bindings_cuda.cpp",
        Path(__file__).parent / "emulated.cpp",
    ]
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder, "emulated.so"))

        def compiled(source: Path) -> str:
            output = str(Path(folder, source.name + ".o"))
            run(["g++", *FLAGS, *(f"-I{path}" for path in includes), "-x", "c++", "-c", str(source), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        run(["g++", "-shared", "-fsanitize=alignment", *objects, "-o", target])
        spec = importlib.util.spec_from_file_location("emulated", target)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    module.set_seed(SEED)
    return module


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@contextlib.contextmanager
def emulated() -> Iterator[ModuleType]:
    """Run every operation on CPU tensors inside the block by the emulated CUDA kernels."""
    with (
        mock.patch.object(backend, "extension", library()),
        mock.patch.object(backend, "choose", return_value="cuda"),
        mock.patch.object(extension, "current_stream", return_value=0),
    ):
        yield library()


class Guarded:
    """A tensor between guard elements, `shift` elements past a 16-byte boundary; `intact` tells whether they are."""

    def __init__(self, values: Tensor, shift: int = 0) -> None:
        n = values.numel()
        self.storage = torch.full((n + 2 * GUARD + 16,), 77, dtype=values.dtype)
        skip = -self.storage.data_ptr() % 16 // values.element_size()
        self.begin, self.end = skip + GUARD + shift, skip + GUARD + shift + n
        self.tensor = self.storage[self.begin : self.end].view(values.shape).copy_(values)

    def intact(self) -> bool:
        return bool((self.storage[: self.begin] == 77).all() and (self.storage[self.end :] == 77).all())


def assert_bits(actual: Tensor, expected: Tensor) -> None:
    """Assert equality bit for bit: NaN equals NaN, -0 does not equal +0."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    same = torch.equal(
        actual.contiguous().flatten().view(torch.uint8), expected.contiguous().flatten().view(torch.uint8)
    )
    if not same:
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert same, "equal as numbers, different bits: the sign of a zero or the bits of a NaN"
