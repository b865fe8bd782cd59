"""The Triton kernels, interpreted against the reference and compiled ahead of time, each in its own process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsynsam.kernels import launch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(*arguments: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@needs_triton
@pytest.mark.slow
def test_interpreted_kernels_equal_the_reference():
    folder = Path(__file__).with_name("interpreted")
    result = run("-m", "pytest", "-p", "no:cacheprovider", "--durations=5", str(folder), interpret=True)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)


@needs_triton
def test_kernels_compile_without_spills_or_fused_operations(tmp_path):
    result = run("-m", "fedsynsam.kernels.aot", "--arch", "90", "--cuda-sources", str(tmp_path), interpret=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for operation in ("index_coding", "sam", "topk"):
        assert f"{operation} " in result.stdout
    assert " 0 refused" in result.stdout


@needs_triton
def test_ahead_of_time_compilation_refuses_the_interpreter():
    result = run("-m", "fedsynsam.kernels.aot", interpret=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET is set" in result.stderr


def test_ptxas_report_is_read():
    from fedsynsam.kernels import aot

    report = """\
ptxas info    : Compiling entry function 'void fedsynsam::(anonymous namespace)::go<fedsynsam::F32, 4>(int)' for 'sm_90'
ptxas info    : Function properties for go
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 64 bytes smem
ptxas info    : Compiling entry function 'plain' for 'sm_100a'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""
    assert list(aot.parse_ptxas(report, "x.cu")) == [
        aot.Usage("x.cu go<F32, 4>", 90, 40, 64, 8, "spills"),
        aot.Usage("x.cu plain", 100, 12, 0, 0, ""),
    ]


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 4095, 4096, 4097, 4096 * 1024, 4096 * 1024 + 1, 10**8])
def test_launch_covers_every_row(n):
    size = launch.sam(n)
    assert (size.chunks - 1) * size.block < n <= size.chunks * size.block or n == size.chunks == 0
    assert size.block & (size.block - 1) == 0
    assert size.num_warps * 32 <= size.block
    few = size.chunks <= 1024
    assert size.inline_partials >= size.chunks if few else size.inline_partials == 1


@pytest.mark.parametrize("words", [1, 63, 64, 65, 64 * 1024, 64 * 1024 + 1, 94_000, 2**27])
def test_decoding_launch_covers_every_word(words):
    size = launch.decode(words)
    assert (size.blocks - 1) * size.tiles * size.tile < words <= size.blocks * size.tiles * size.tile
    assert size.blocks <= size.max_blocks


@pytest.mark.parametrize("chunk", [1, 32, 33, 200, 4096, 4097, launch.MAX_CHUNK])
def test_chunk_launch_holds_the_chunk(chunk):
    size = launch.chunk_topk(chunk)
    assert size.block >= chunk
    assert size.block & (size.block - 1) == 0
    assert size.num_warps <= 32
