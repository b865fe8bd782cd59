"""The table of compiled kernels: kept, read again, compared."""

from __future__ import annotations

import pytest

from fedsynsam.kernels import aot, aot_table
from fedsynsam.kernels.aot_table import Usage

TABLE = [
    Usage("sam.cu step<F32, 4>", 90, 40, 64, 0, "", "nvcc 13.0.88"),
    Usage("sam.cu step<F32, 4>", 80, 38, 64, 0, "", "nvcc 13.0.88"),
    Usage("sam step_chunk fp32", 90, 32, 0, 0, "", "triton 3.7.1"),
]


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "aot.csv"
    aot_table.write(TABLE, path)
    assert sorted(aot_table.read(path)) == sorted(TABLE)
    assert path.read_text(encoding="utf-8").splitlines()[1] == "sam step_chunk fp32,90,32,0,0,triton 3.7.1"
    assert [p.name for p in tmp_path.iterdir()] == ["aot.csv"]


def test_equal_tables_do_not_differ():
    assert aot_table.differences(TABLE, reversed(TABLE)) == []
    newer = [usage._replace(compiler=usage.compiler + ".1") for usage in TABLE]
    assert aot_table.differences(TABLE, newer) == []


def test_what_changed_is_named_with_both_figures():
    first, second, third = TABLE
    now = [first._replace(registers=44, spilled=8), second, third._replace(shared=128, compiler="triton 3.8.0")]
    assert aot_table.differences(TABLE, now) == [
        "changed: sam step_chunk fp32 (sm_90): shared 0 -> 128, compiler triton 3.7.1 -> triton 3.8.0",
        "changed: sam.cu step<F32, 4> (sm_90): registers 40 -> 44, spilled 0 -> 8",
    ]


def test_kernels_that_come_and_go():
    renamed = TABLE[0]._replace(kernel="sam.cu walk")
    assert (
        aot_table.differences(TABLE, [renamed, *TABLE[1:]])
        == [
            "new: sam.cu walk (sm_90): 40 registers, 64 shared, 0 spilled",
            "gone: sam.cu step<F32, 4> (sm_90)",
        ][::-1]
    )


def test_what_was_not_compiled_this_time_is_not_gone():
    assert aot_table.differences(TABLE, [TABLE[0]]) == []


@pytest.mark.parametrize("text", ["", "a,b\n", ",".join(aot_table.COLUMNS) + "\nx,90,many,0,0,nvcc\n"])
def test_another_file_is_refused_by_name(tmp_path, text, capsys):
    path = tmp_path / "other.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.csv"):
        aot_table.read(path)
    with pytest.raises(SystemExit) as stopped:
        aot.main(["--compare", str(path)])
    assert stopped.value.code == 2
    assert "other.csv" in capsys.readouterr().err


def test_the_command_keeps_and_compares(tmp_path, monkeypatch, capsys):
    path = tmp_path / "aot.csv"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(aot, "usages", lambda *_: iter(TABLE))
    assert aot.main(["--csv", str(path)]) == 0
    monkeypatch.setattr(aot, "usages", lambda *_: iter([TABLE[0]._replace(registers=255)]))
    assert aot.main(["--compare", str(path), "--csv", str(path)]) == 0
    assert "registers 40 -> 255" in capsys.readouterr().out
    assert len(aot_table.read(path)) == 1
