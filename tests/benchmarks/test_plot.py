"""The charts of a benchmark's file, from made-up rows."""

import csv
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks import plot
from benchmarks.run import FIELDS


def made_up(sizes: list[tuple[int, int]], backends: list[str]) -> list[dict[str, str]]:
    where = {"device": "D", "threads": "", "torch": "0", "commit": "c", "date": "d"}
    rows = []
    for rows_count, n in sizes:
        shared = {"op": "topk", "label": "topk 0.1", "rows": rows_count, "n": n, "floor_bytes": 12 * n, **where}
        times = {"floor_gbps": 9, "copy_gbps": 10, "times_copy": 8, "met": "no", "goal": "times_copy<=1.48"}
        rows += [{**shared, **times, "backend": name} for name in backends]
        rows.append({**shared, **times, "backend": "eager", "speedup": 9, "met": "yes", "goal": "speedup>=8"})
        rows.append({**shared, **times, "backend": "torch.topk alone", "speedup": 0.5, "met": "", "goal": ""})
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_one_size_makes_three_pictures(tmp_path):
    plot.main([str(write(tmp_path / "gpu.csv", made_up([(1, 1000)], ["cuda", "triton"]))), "--out", str(tmp_path)])
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["gpu_copy.png", "gpu_roofline.png", "gpu_speedup.png"]


def test_several_sizes_have_charts_of_their_own(tmp_path):
    rows = plot.read(write(tmp_path / "gpu.csv", made_up([(1, 1000), (64, 10)], ["cuda"])))
    names = [name for name, _ in plot.figures(rows)]
    assert names == ["roofline", "copy_1x1000", "speedup_1x1000", "copy_64x10", "speedup_64x10"]
    plot.plt.close("all")


def test_backends_are_told_apart_only_where_there_are_several():
    rows = made_up([(1, 10)], ["cuda", "triton"])[:2]
    assert [plot.name_of(row, rows) for row in rows] == ["topk 0.1 · cuda", "topk 0.1 · triton"]
    assert plot.name_of(rows[0], rows[:1]) == "topk 0.1"


def test_a_file_that_is_no_benchmark_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="holds no benchmark results"):
        plot.main([str(tmp_path / "x.csv")])
