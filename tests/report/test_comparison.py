"""The arithmetic of a comparison on made-up runs, and its figures."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fedsynsam.errors import ConfigError
from fedsynsam.fl.metrics import RoundMetrics
from fedsynsam.report import comparison_figures, figures
from fedsynsam.report.comparison import headline_text, markdown_table, write_comparison
from fedsynsam.report.figures import save_advice, save_curves
from fedsynsam.report.groups import Comparison, headline, headlines, read_cells
from fedsynsam.report.page import comparison_page
from fedsynsam.report.results import results_csv, settings_note
from fedsynsam.report.runs import Run
from fedsynsam.report.text import bytes_text

VERSIONS = {"fedsynsam": "0", "python": "3", "torch": "2", "numpy": "2", "commit": None}


def run(algorithm: str, seed: int, accuracy: float, compressor: str = "topk:0.01") -> Run:
    config: dict[str, Any] = {"algorithm": algorithm, "compressor": compressor, "seed": seed, "versions": VERSIONS}
    rounds = [
        RoundMetrics(
            round=number,
            train_loss=1 / number,
            uplink_bytes=100,
            downlink_bytes=1000,
            seconds=0.1,
            test_accuracy=accuracy * number / 5,
            test_loss=2 / number,
        )
        for number in range(1, 6)
    ]
    summary = {"final_accuracy": accuracy, "last_accuracy": accuracy, "uplink_bytes": 500, "uplink_ratio": 80.0}
    summary |= {"downlink_bytes": 5000, "seconds": 0.5, "dense_uplink_bytes": 40000, "parameters": 1000, "rounds": 5}
    return Run(Path(), config, rounds, summary)


def runs_of(**accuracies: list[float]) -> list[Run]:
    return [run(name, seed, value) for name, values in accuracies.items() for seed, value in enumerate(values)]


def test_headline_is_the_share_of_the_possible_gain() -> None:
    runs = runs_of(
        fedavg=[0.70, 0.72], fedsam=[0.60, 0.60], fedlesam=[0.5, 0.5], fedsynsam=[0.73, 0.73], realset=[0.75, 0.75]
    )
    entry = headline(read_cells(runs), "topk:0.01")
    assert entry["best"] == "fedavg"
    assert entry["value"] == pytest.approx((0.73 - 0.71) / (0.75 - 0.71))
    assert "0.50 (best: fedavg)" in headline_text(entry)


def test_headline_is_undefined_where_real_images_do_not_help() -> None:
    runs = runs_of(fedavg=[0.7], fedsam=[0.8], fedlesam=[0.5], fedsynsam=[0.9], realset=[0.8])
    entry = headline(read_cells(runs), "topk:0.01")
    assert entry["value"] is None
    assert "realset is no better than fedsam" in headline_text(entry)


def test_headline_names_what_was_not_run() -> None:
    entry = headline(read_cells(runs_of(fedavg=[0.7])), "topk:0.01")
    assert entry["reason"] == "not run: fedsam, fedlesam, fedsynsam, realset"


def test_a_seed_that_one_preset_did_not_finish_is_left_out_of_the_headline_and_told() -> None:
    runs = runs_of(
        fedavg=[0.70, 0.60, 0.65], fedsam=[0.6] * 3, fedlesam=[0.5] * 3, fedsynsam=[0.72, 0.62, 0.67],
        realset=[0.73, 0.63, 0.68],
    )  # fmt: skip
    whole, part = read_cells(runs), read_cells([one for one in runs if one.title != "fedsynsam, topk:0.01, seed 1"])
    assert headline(whole, "topk:0.01")["value"] == pytest.approx(2 / 3)
    entry = headline(part, "topk:0.01")
    assert (entry["value"], entry["seeds"]) == (pytest.approx(2 / 3), [0, 2])
    assert "0.67 (best: fedavg; seeds 0, 2 alone)" in headline_text(entry)
    assert "| fedsynsam | 69.50 ± 3.54 (2 of 3 seeds) |" in markdown_table(part)
    assert "of 3 seeds" not in markdown_table(whole)
    other = [replace(one, config={**one.config, "seed": 7}) if one.title.startswith("realset") else one for one in runs]
    assert headline(read_cells(other[:-2]), "topk:0.01")["reason"] == "no seed was finished by all five"


def planned(seeds: int, *algorithms: str, **more: Any) -> list[dict[str, Any]]:
    """The settings of as many seeds of each algorithm."""
    return [{**run(name, seed, 0.0).config, **more} for seed in range(seeds) for name in algorithms]


def test_what_failed_is_told_in_its_place(tmp_path: Path) -> None:
    accuracies = [0.70, 0.60]  # of three seeds the last failed everywhere
    runs = runs_of(fedavg=accuracies, fedsam=accuracies, fedsynsam=accuracies, realset=accuracies)
    plan = planned(3, "fedavg", "fedsam", "fedlesam", "fedsynsam", "realset")
    comparison = read_cells(runs, planned=plan)
    lines = markdown_table(comparison).splitlines()
    assert lines[2:5] == [
        "| fedavg | 65.00 ± 7.07 (2 of 3 seeds) |",
        "| fedsam | 65.00 ± 7.07 (2 of 3 seeds) |",
        "| fedlesam | failed in 3 of 3 seeds |",
    ]
    assert "undefined (failed in every seed: fedlesam)" in "\n".join(lines)
    assert len(results_csv(comparison).splitlines()) == 1 + 8
    write_comparison(comparison, tmp_path)

    four = [one for one in plan if one["algorithm"] != "realset"]
    [entry] = headlines(read_cells(runs[:-2], planned=four, lost="unfinished"))
    assert entry["reason"] == "unfinished in every seed: fedlesam; not run: realset"
    runs += runs_of(fedlesam=[0.5, 0.5])
    assert headline(read_cells(runs, planned=plan), "topk:0.01")["seeds"] == [0, 1]


def test_what_was_never_planned_is_told_as_before() -> None:
    comparison = read_cells(runs_of(fedavg=[0.7]), planned=planned(1, "fedavg"))
    assert headline(comparison, "topk:0.01")["reason"] == "not run: fedsam, fedlesam, fedsynsam, realset"
    runs = [run("fedavg", 0, 0.7), run("fedsam", 0, 0.7, "none")]
    assert "| fedavg | 70.00 |  |" in markdown_table(read_cells(runs)), "an empty cell was not planned"


@pytest.mark.parametrize("swept", ["alpha", None])
def test_a_value_and_a_compressor_of_which_nothing_finished_are_there(swept: str | None, tmp_path: Path) -> None:
    plan = [
        {**one, "alpha": alpha, "compressor": spec}
        for alpha in (1.0, 0.1)
        for spec in ("topk:0.01", "quantize:1")
        for one in planned(2, "fedavg", "fedsam")
    ]
    runs = [replace(one, config={**one.config, "alpha": 1.0}) for one in runs_of(fedavg=[0.7, 0.8])]
    comparison = read_cells(runs, swept=swept, planned=plan)
    assert comparison.swept == "alpha"
    first, second = markdown_table(comparison).split("## alpha = 1")
    assert first.splitlines()[4:6] == [f"| {name} |" + " failed in 2 of 2 seeds |" * 2 for name in ("fedavg", "fedsam")]
    assert "| fedavg | 75.00 ± 7.07 | failed in 2 of 2 seeds |" in second
    assert "| uplink a run | 500 B (80.0 x smaller) |  |" in second
    assert "uplink" not in first
    assert len(write_comparison(comparison, tmp_path)) >= 5
    assert len(comparison_figures.save_comparison_figures(dict(comparison.parts())["alpha = 1"], tmp_path)) == 3


def test_a_seed_counts_once() -> None:
    first, again = run("fedavg", 0, 0.7), replace(run("fedavg", 0, 0.7), path=Path("again"))
    with pytest.raises(ConfigError, match=r"'\.' and 'again' are both fedavg, topk:0.01, seed 0"):
        read_cells([first, again])


def test_runs_of_different_length_are_not_put_side_by_side() -> None:
    runs = runs_of(fedavg=[0.7], fedsam=[0.8])
    for one, rounds in zip(runs, (10, 40), strict=True):
        one.config.update(rounds=rounds, lr=0.1)
    comparison = read_cells(runs)
    assert comparison.swept == "rounds"
    assert "## rounds = 10" in markdown_table(comparison)
    runs[1].config.update(lr=0.2)
    with pytest.raises(ConfigError, match="differ in rounds, lr; give"):
        read_cells(runs)


def test_table_has_mean_and_standard_deviation() -> None:
    table = markdown_table(read_cells(runs_of(fedavg=[0.70, 0.72], fedsam=[0.6])))
    assert "| fedavg | 71.00 ± 1.41 |" in table
    assert "| fedsam | 60.00 (1 of 2 seeds) |" in table
    assert "(80.0 x smaller)" in table


def test_an_algorithm_that_sends_more_has_an_uplink_of_its_own_in_the_table() -> None:
    runs = runs_of(fedavg=[0.7], fedsam=[0.6])
    twice = run("fedsmoo", 0, 0.65)
    twice.summary.update(uplink_bytes=1000, uplink_ratio=40.0)
    lines = markdown_table(read_cells([*runs, twice])).splitlines()
    assert "| uplink a run | 500 B (80.0 x smaller) |" in lines
    assert "| uplink a run, fedsmoo | 1 kB (40.0 x smaller) |" in lines


def test_the_paired_test_is_against_the_best_of_all_rivals() -> None:
    pytest.importorskip("scipy", reason="the paired test needs SciPy")
    from fedsynsam.report.paired import PAIRED, paired_table

    runs = runs_of(fedavg=[0.7, 0.7], feddyn=[0.74, 0.72], fedsynsam=[0.76, 0.75], realset=[0.8, 0.8])
    rows = {row[0]: row for row in paired_table(read_cells(runs))[1:]}
    assert set(rows) == {"fedavg", "fedsynsam", "realset"}
    assert rows["fedsynsam"][2] == "feddyn"
    assert rows["fedsynsam"][3].startswith("+2.50")
    assert rows["fedavg"][5] != ""
    assert rows["fedavg"][4] == "2"
    lines = markdown_table(read_cells(runs)).splitlines()
    assert "| " + " | ".join(rows["fedsynsam"]) + " |" in lines
    places = [lines.index(line) for line in ("| accuracy, % | topk:0.01 |", f"## {PAIRED}")]
    assert places == sorted(places)


def test_a_rival_that_failed_in_a_seed_is_not_the_best_and_equal_differences_have_no_p() -> None:
    pytest.importorskip("scipy", reason="the paired test needs SciPy")
    from fedsynsam.report.paired import paired_table

    runs = runs_of(fedavg=[0.5, 0.25, 0.75], feddyn=[0.74, 0.54], fedsynsam=[0.625, 0.375, 0.875])
    rows = {row[0]: row for row in paired_table(read_cells(runs))[1:]}
    assert {row[2] for row in rows.values()} == {"fedavg"}
    assert rows["fedsynsam"][3:] == ["+12.50 ± 0.00", "3", ""]
    assert paired_table(read_cells(runs[:1])) == []


def test_noise_of_rounding_is_no_difference() -> None:
    pytest.importorskip("scipy", reason="the paired test needs SciPy")
    from fedsynsam.report.paired import paired_table

    runs = runs_of(
        fedavg=[0.7, 0.72, 0.71], fedsam=[0.7 - 0.1, 0.72 - 0.1, 0.71 - 0.1], fedlesam=[0.1] * 3,
        fedsynsam=[0.8, 0.82, 0.81], realset=[0.7 + 3e-16, 0.72, 0.71],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = {row[0]: row for row in paired_table(read_cells(runs))[1:]}
    assert [rows[name][3:] for name in ("fedsam", "fedsynsam", "realset")] == [
        ["-10.00 ± 0.00", "3", ""], ["+10.00 ± 0.00", "3", ""], ["+0.00 ± 0.00", "3", ""]
    ]  # fmt: skip
    assert headline(read_cells(runs), "topk:0.01")["reason"] == "realset is no better than fedavg: nothing to be gained"


def test_the_paired_table_of_a_sweep_names_the_value() -> None:
    pytest.importorskip("scipy", reason="the paired test needs SciPy")
    from fedsynsam.report.paired import paired_table

    header, *rows = paired_table(read_cells(swept(a0_5=0.7, a0_1=0.6)))
    assert header[:4] == ["algorithm", "alpha", "compressor", "against"]
    assert {row[1] for row in rows} == {"0.1", "0.5"}
    assert {row[3] for row in rows} == {"fedlesam"}


def swept(**alphas: float) -> list[Run]:
    """Runs of the five presets of the headline at each alpha, whose accuracies are the given one and more."""
    runs = []
    for name, accuracy in alphas.items():
        presets = {"fedavg": 0.0, "fedsam": 0.01, "fedlesam": 0.02, "fedsynsam": 0.05, "realset": 0.06}
        for one in runs_of(**{preset: [accuracy + more, accuracy + more] for preset, more in presets.items()}):
            runs.append(replace(one, config={**one.config, "alpha": float(name[1:].replace("_", "."))}))
    return runs


def test_a_sweep_is_found_and_grouped_by_value() -> None:
    comparison = read_cells(swept(a0_5=0.7, a0_1=0.6))
    assert (comparison.swept, comparison.values) == ("alpha", [0.1, 0.5])
    group = comparison.group("fedsam", "topk:0.01", 0.1)
    assert group is not None
    assert group.accuracies == [0.61, 0.61]
    assert comparison.group("fedsam", "topk:0.01") is None
    entries = headlines(comparison)
    assert [entry["setting"] for entry in entries] == ["alpha = 0.1", "alpha = 0.5"]
    assert [entry["value"] for entry in entries] == pytest.approx([0.75, 0.75])
    assert "under topk:0.01, alpha = 0.1: 0.75 (best: fedlesam)" in headline_text(entries[0])
    first, second = markdown_table(comparison).split("## alpha = 0.5")
    assert "| fedsam | 61.00 ± 0.00 |" in first
    assert "| fedsam | 71.00 ± 0.00 |" in second


def test_a_column_for_a_setting_that_has_none() -> None:
    runs = [replace(one, config={**one.config, "beta": one.config["alpha"]}) for one in swept(a0_5=0.7, a1=0.8)]
    for one in runs:
        del one.config["alpha"]
    header, first, *_ = results_csv(read_cells(runs)).splitlines()
    assert (header.split(",")[-1], first.split(",")[-1]) == ("beta", "0.5")


def test_settings_that_decide_results_have_columns_and_a_note() -> None:
    runs = [*runs_of(fedavg=[0.7], fedprox=[0.7], fedsam=[0.7]), run("fedavg", 0, 0.7, "none")]
    assert settings_note(read_cells(runs)) is None
    for one, momentum in zip(runs, (0.9, 0.9, 0.0, 0.0), strict=True):
        one.config.update(momentum=momentum, clip_norm=10.0, sharpness=momentum > 0, prox=None, beta=1.0)
    runs[1].config.update(prox=0.1)  # FedProx's default
    comparison = read_cells(runs)
    header, first, *_ = results_csv(comparison).splitlines()
    assert header.split(",")[-3:] == ["commit", "momentum", "clip_norm"]
    assert first.split(",")[-2:] == ["0.9", "10.0"]
    note = settings_note(comparison)
    told = "momentum 0.9 in fedavg under topk:0.01 and fedprox, 0 in fedsam and fedavg under none"
    assert note == f"Not every run has the same settings: {told}."
    lines = markdown_table(comparison).splitlines()
    assert lines.index(note) > lines.index("| fedsam | 70.00 |  |")
    assert note in page_of(comparison)
    runs[0].config.update(prox=0.5)
    assert "prox 0.5 in fedavg under topk:0.01, 0.1 in fedprox, none in fedsam" in str(settings_note(read_cells(runs)))


def page_of(comparison: Comparison) -> str:
    pytest.importorskip("plotly", reason="the page needs Plotly")
    pytest.importorskip("scipy", reason="the page needs SciPy")
    return comparison_page(comparison, [], None)


def test_what_follows_from_a_swept_setting_is_not_another() -> None:
    runs = runs_of(fedavg=[0.6], fedsynsam=[0.7]) + runs_of(fedavg=[0.5], fedsynsam=[0.6])
    for number, one in enumerate(runs):
        one.config.update(dataset="ab"[number // 2], dataset_crc32="12"[number // 2])
    assert read_cells(runs).swept == "dataset"
    runs[1].config.update(dataset_crc32="3")
    with pytest.raises(ConfigError, match="differ in dataset_crc32, dataset"):
        read_cells(runs)

    runs = [run("fedsynsam", seed, 0.7) for seed in (0, 0, 0)]
    for one, (path, every, crc32) in zip(runs, [(None, 10, None), ("x", 0, "1"), ("y", 0, "2")], strict=True):
        one.config.update(synthetic=path, synthetic_every=every, **({"synthetic_crc32": crc32} if crc32 else {}))
    comparison = read_cells(runs)
    assert comparison.swept == "synthetic"
    assert settings_note(comparison) is None
    runs[2].config.update(synthetic="x", synthetic_every=5, seed=1)
    with pytest.raises(ConfigError, match="differ in synthetic, synthetic_every, synthetic_crc32"):
        read_cells(runs)


def test_runs_that_measured_more_are_no_sweep() -> None:
    runs = runs_of(fedavg=[0.7, 0.8])
    for name in ("sharpness", "cosines", "encode"):
        runs[0].config.update({name: True})
        runs[1].config.update({name: False})
    assert read_cells(runs).swept is None


def test_a_radius_of_its_own_is_no_sweep_and_two_settings_are_refused() -> None:
    runs = swept(a0_1=0.6)
    for one in runs:
        one.config.update(rho=len(one.config["algorithm"]) / 10, clients=5)
    assert read_cells(runs).swept is None
    runs += [replace(one, config={**one.config, "alpha": 0.5, "clients": 9}) for one in swept(a0_1=0.6)]
    with pytest.raises(ConfigError, match="differ in alpha, clients; give runs that differ in one"):
        read_cells(runs)


def test_every_algorithm_is_in_the_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr(comparison_figures, "save", lambda figure, path: drawn.append(figure) or path)
    runs = [run("fedavg", 0, 0.7), run("fedavg", 0, 0.7, "quantize:2"), run("feddyn", 0, 0.7, "quantize:2")]
    comparison_figures.save_comparison_figures(read_cells(runs), tmp_path)
    for figure in drawn:
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedavg", "feddyn"]


def test_advice_draws_every_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure) or path)
    save_advice({f"spec {place}": (0.1, 1e6) for place in range(12)}, tmp_path / "advice.png", "many")
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_label() for line in lines] == [f"spec {place}" for place in range(12)]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


def test_figures_of_a_sweep(tmp_path: Path) -> None:
    written = write_comparison(read_cells(swept(a0_1=0.6, a0_5=0.7)), tmp_path)
    assert {path.name for path in written if path.suffix == ".png"} == {"accuracy.png", "sweep.png"}
    write_comparison(read_cells(runs_of(fedavg=[0.7])), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "bytes.png", "bars.png"}
    write_comparison(read_cells(swept(a0_1=0.6, a0_5=0.7)), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "sweep.png"}
    assert (imread(tmp_path / "sweep.png")[..., :3].min(axis=2) < 0.9).mean() > 0.01


def test_figures_are_pictures_with_something_on_them(tmp_path: Path) -> None:
    runs = runs_of(fedavg=[0.7, 0.72], fedsam=[0.6, 0.65])
    pictures = [path for path in write_comparison(read_cells(runs), tmp_path) if path.suffix == ".png"]
    pictures.append(save_curves(runs[0].rounds, tmp_path / "curves.png", title="a run"))
    assert len(pictures) == 4
    for path in pictures:
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 300
        assert (pixels.min(axis=2) < 0.9).mean() > 0.01, f"{path.name} is empty"


def test_curves_show_what_was_logged(tmp_path: Path) -> None:
    rounds = run("fedsynsam", 0, 0.7).rounds
    plain = imread(save_curves(rounds, tmp_path / "plain.png", title="a run"))
    rounds[2] = replace(rounds[2], cosines={"local": 0.1, "real": 0.9})
    rounds[4] = replace(rounds[4], cosines={"local": 0.0, "real": 0.8, "synthetic": 0.7}, sharpness=12.0)
    full = imread(save_curves(rounds, tmp_path / "full.png", title="a run"))
    assert full.shape[1] == pytest.approx(plain.shape[1] * 5 / 3, rel=0.01)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB"), (5e13, "50 TB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert bytes_text(count) == text
