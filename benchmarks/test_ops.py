"""The same cases under pytest-benchmark, to compare two commits or machines while working on a kernel:

    pytest benchmarks/test_ops.py --benchmark-autosave --benchmark-compare -k quantize

FEDSYNSAM_BENCHMARK_N sets the size (default 1,000,000). Not collected by a plain `pytest`.
"""

import os

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.case import Case
from benchmarks.cases import CASES
from benchmarks.run import check

N = int(os.environ.get("FEDSYNSAM_BENCHMARK_N", "1000000"))
CPU = torch.device("cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label.replace(" ", "-"))
def test_op(case: Case, benchmark: BenchmarkFixture) -> None:
    check(case, 1, N, CPU)
    benchmark.group = case.op
    benchmark.extra_info["floor_bytes"] = case.floor(1, N)
    benchmark(case.build(1, N, CPU).run)
