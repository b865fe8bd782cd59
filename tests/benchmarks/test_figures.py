"""The figures of committed results are drawn from the files alone."""

from __future__ import annotations

from pathlib import Path

from matplotlib.image import imread

from benchmarks import figures

RESULTS = Path(figures.__file__).parent / "results"


def test_each_is_drawn(tmp_path):
    figures.main(["--results", str(RESULTS), "--out", str(tmp_path)])
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert names == {"federation.png", "federation-presets.png", "peers/cpu.png", "sharpness.png", "accuracy.png"}
    for name in names:
        assert (imread(tmp_path / name)[..., :3].min(axis=2) < 0.9).mean() > 0.02


def test_bars_and_lines_are_the_numbers_of_the_files():
    rows = figures.read(RESULTS / "federation.csv")
    bars = figures.federation(rows).axes[0].patches
    expected = [float(row[key]) for key in ("ratio", "to_pytorch") for row in rows]
    assert [bar.get_width() for bar in bars] == expected
    studies = [figures.read(RESULTS / name / "results.csv") for name in ("standard", "heterogeneity")]
    for value in ("sharpness", "final_accuracy"):
        left = figures.study(*studies, value, "label").axes[0]
        fedavg = [row for row in studies[0] if (row["algorithm"], row["compressor"]) == ("fedavg", "none")]
        own = [float(row[value]) for row in fedavg]
        first = left.containers[0].lines[0].get_ydata()[0]
        assert len(own) == 10
        assert abs(first - sum(own) / 10) < 1e-9
    assert left.get_title() == "alpha = 0.1, 10 seeds"
