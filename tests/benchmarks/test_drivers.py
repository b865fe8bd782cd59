"""The programs that checkers and profilers watch: they reach every operation, and their reports are read right."""

from __future__ import annotations

import pytest

from benchmarks import profiling, sanitize
from benchmarks.cases import CASES
from fedsynsam import ops
from fedsynsam.ops import backend

BY_LABEL = {case.label: case for case in CASES}
OPERATIONS = {"topk", "chunk_topk", "quantize", "dequantize", "encode_indices", "decode_indices", "aggregate_sparse"}
OPERATIONS |= {"aggregate_codes", "sam_norm", "sam_perturb", "sam_step"}
# As `ncu --csv --page raw --print-units base` prints it, behind lines of its own and of the program.
REPORT = f"""\
==PROF== Connected to process 7
==PROF== Profiling "chunk_squares": 0%....100% - 1 pass
"ID","Process ID","Kernel Name","{profiling.READ}","{profiling.WRITTEN}","{profiling.SHARE}","{profiling.DURATION}"
"","","","byte","byte","%","ns"
"0","7","chunk_squares(const float *, int)","400,000,000","1024","80","200000"
"1","7","perturb","800000000","400000000.5","90.5","400000"
"""


def test_the_sanitized_program_calls_every_operation(capsys):
    assert sanitize.main(["--backend", "reference"]) == 0
    printed = capsys.readouterr().out
    assert {part.split(":")[0] for part in printed.strip().split(", ")} == OPERATIONS
    assert set(backend.GPU_BACKENDS) <= OPERATIONS
    assert {name for name in OPERATIONS if not hasattr(ops, name)} == set()


def test_the_sanitized_program_says_why_it_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(backend, "why_not", lambda name: f"no {name} here")
    assert sanitize.main([]) == 2
    assert "backend 'cuda' cannot be used here: no cuda here" in capsys.readouterr().err


def test_counters_are_read_from_the_profilers_table():
    first, second = profiling.parse(REPORT)
    assert first == ("chunk_squares(const float *, int)", 4e8, 1024, 2e5, 80)
    assert second == ("perturb", 8e8, 400000000.5, 4e5, 90.5)
    assert profiling.parse("==ERROR== no permission\n") == []


def test_a_calls_kernels_are_added_up():
    rows = profiling.table(BY_LABEL["sam_perturb"], "cuda", 1, 100_000_000, profiling.parse(REPORT))
    total = rows[-1]
    assert [row["kernel"] for row in rows] == ["chunk_squares(const float *, int)", "perturb", "(all)"]
    assert (total["bytes_read"], total["duration_ns"]) == (1_200_000_000, 600_000)
    assert float(total["gbps"]) == pytest.approx(1.6e9 / 6e5, abs=0.1)
    assert float(total["peak_percent"]) == pytest.approx((80 * 2 + 90.5 * 4) / 6, abs=0.1)
    assert total["floor_bytes"] == 1_600_000_000
    assert float(total["times_floor"]) == pytest.approx(1.0, abs=1e-3)


def test_headlines_are_cases():
    assert set(profiling.HEADLINES) <= set(BY_LABEL)


def test_the_profiled_command_is_this_module():
    command = profiling.command(BY_LABEL["sam_step"], "triton", 64, 1000)
    assert command[0] == "ncu"
    assert command[-8:] == ["--call", "sam_step", "--backend", "triton", "--rows", "64", "--n", "1000"]
