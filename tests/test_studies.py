"""The study files: each command that a file names makes the cells that the file says, and cells that can run."""

from __future__ import annotations

import csv
import functools
import math
import re
import shlex
import statistics
from pathlib import Path

import numpy as np
import pytest

from fedsynsam.cli import main
from fedsynsam.cli.compare import cells_of, command_of
from fedsynsam.cli.run import RunCommand, parse
from fedsynsam.fl.algorithm import PRESETS
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.partition import partition
from fedsynsam.fl.streams import PARTITION, stream

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "examples" / "studies").glob("*.toml"))
EXAMPLES = {"fashion-mnist": 60_000, "cifar10": 50_000}


def commands(study: Path) -> list[tuple[list[str], int]]:
    """The words after `fedsynsam compare` of each command in a study's comment, and the cells that the file counts."""
    text = study.read_text()
    lines = re.findall(r"^#   fedsynsam compare (.+)$", text, re.MULTILINE)
    sizes = re.findall(r"^# Size: (\d+) cells", text, re.MULTILINE)
    return [(shlex.split(line), int(size)) for line, size in zip(lines, sizes, strict=True)]


@functools.cache
def configs_of(*words: str) -> list[RunConfig]:
    """What each cell of a command would run, read back from the options that it is started with."""
    assert words[0] == "--config"
    cells = cells_of(command_of(["--config", str(ROOT / words[1]), *words[2:], "--out", "no-such-folder"]))
    assert len({cell.path for cell in cells}) == len(cells)
    return [parse(RunCommand(), cell.options, "run").settings for cell in cells]


def test_the_studies_of_the_plan_are_there() -> None:
    names = {path.stem for path in STUDIES}
    assert names == {"standard", "heterogeneity", "sensitivity", "presets", "contenders", "cifar10-cnn", "cifar10"}


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_commands_make_cells_that_can_run(study: Path) -> None:
    assert commands(study)
    for words, size in commands(study):
        assert words[1] == str(study.relative_to(ROOT))
        configs = configs_of(*words)
        assert len(configs) == size
        splits = {(one.partition, one.alpha, one.clients, one.seed, one.dataset) for one in configs}
        for kind, alpha, clients, seed, dataset in splits:  # a split that leaves a client empty raises
            labels = np.arange(EXAMPLES[dataset]) % 10
            partition(kind, labels, clients, stream(seed, PARTITION), alpha=alpha)


def test_sweeps_take_their_values() -> None:
    swept = {}
    for words, _ in [one for study in STUDIES for one in commands(study)]:
        configs = configs_of(*words)
        for key in ("alpha", "rho", "beta", "synthetic_start", "synthetic_images"):
            for name in {one.algorithm for one in configs}:
                values = {getattr(one, key) for one in configs if one.algorithm == name}
                if len(values) > 1:
                    swept[Path(words[-1]).name, key] = values
    assert swept == {
        ("heterogeneity", "alpha"): {0.05, 0.1, 0.5, float("inf")},
        ("rho", "rho"): {0.02, 0.05, 0.1, 0.2, 0.5},
        ("presets-rho", "rho"): {0.02, 0.05, 0.1},
        ("clip-rho-d", "rho"): {0.1, 0.2, 0.4},
        ("clip-rho", "rho"): {0.05, 0.1},
        ("duals-rho", "rho"): {0.02, 0.05},
        ("presets-duals-rho", "rho"): {0.01, 0.02, 0.05, 0.1},
        ("variates-rho", "rho"): {0.01, 0.02, 0.05, 0.1},
        ("cifar10-cnn-rho", "rho"): {0.02, 0.05, 0.1, 0.2},
        ("beta", "beta"): {0.25, 0.5, 0.75, 1.0},
        ("start", "synthetic_start"): {10, 25, 50},
        ("images", "synthetic_images"): {1, 5, 15},
    }


def test_presets_holds_every_algorithm_but_the_oracle() -> None:
    (words, _), *tunings = commands(ROOT / "examples" / "studies" / "presets.toml")
    configs = configs_of(*words)
    assert {one.algorithm for one in configs} == set(PRESETS) - {"oracle"}
    assert not {one.seed for one in configs} & {one.seed for tuning, _ in tunings for one in configs_of(*tuning)}
    best: dict[str, float] = {}
    tuned = [f"tuning/{name}.csv" for name in ("clip-rho", "presets-clip", "duals", "variates-clip")]
    for file in ("sensitivity/rho/results.csv", *tuned):
        assert not {one.seed for one in configs} & {int(row["seed"]) for row in rows_of(file)}
        best |= best_radii(file)
    assert radii_of(configs) == {**best, "realset": best["fedsynsam"]}


def test_contenders_have_the_best_radii_on_other_seeds() -> None:
    (words, _), (clipped, _), *tunings = commands(ROOT / "examples" / "studies" / "contenders.toml")
    configs = [*configs_of(*words), *configs_of(*clipped)]
    tuned = [one for tuning, _ in tunings for one in configs_of(*tuning)]
    reported = {one.seed for one in configs}
    assert len(reported) == 10
    assert not reported & {7, 8, 9} | reported & {one.seed for one in tuned}
    radii, under_topk = radii_of(configs_of(*words)), radii_of(configs_of(*clipped))
    assert under_topk == best_radii("tuning/clip-rho.csv") | best_radii("tuning/duals.csv")
    wide = best_radii("tuning/presets-quantize-wide.csv")
    assert radii == {name: wide[name] for name in ("fedsynsam-d", "fedspeed")} | best_radii("tuning/duals-quantize.csv")


@pytest.mark.parametrize("study", ["standard", "heterogeneity"])
def test_radii_are_the_best_on_other_seeds(study: str) -> None:
    (words, _), *_ = commands(ROOT / "examples" / "studies" / f"{study}.toml")
    (tuning, _), *_ = commands(ROOT / "examples" / "studies" / "sensitivity.toml")
    configs, tuned = configs_of(*words), configs_of(*tuning)
    assert not {one.seed for one in configs} & {one.seed for one in tuned}
    best = best_radii("sensitivity/rho/results.csv")
    # the ceiling differs from FedSynSAM in its images alone
    assert radii_of(configs) == {**best, "realset": best["fedsynsam"]}


def test_heterogeneity_has_the_best_radii_for_every_alpha() -> None:
    (words, _), *own = commands(ROOT / "examples" / "studies" / "heterogeneity.toml")
    configs = [one for more, _ in [(words, 0), *own] for one in configs_of(*more)]
    rows = rows_of("tuning/heterogeneity.csv")
    assert not {one.seed for one in configs} & {int(row["seed"]) for row in rows}
    for alpha, more in ((0.05, words), (0.5, own[0][0]), (math.inf, own[1][0])):
        best = best_radii_of([row for row in rows if float(row["alpha"]) == alpha and float(row["rho"])])
        radii = radii_of([one for one in configs_of(*more) if one.alpha == alpha])
        assert {**best, "realset": best["fedsynsam"]}.items() <= radii.items()


def radii_of(configs: list[RunConfig]) -> dict[str, float]:
    """The radius of each algorithm that has one."""
    return {one.algorithm: one.rho for one in configs if one.rho}


def rows_of(file: str) -> list[dict[str, str]]:
    """The rows of a file of results."""
    with (ROOT / "benchmarks" / "results" / file).open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


def best_radii(file: str) -> dict[str, float]:
    """The radius with the highest mean accuracy of each algorithm, by a file of results."""
    return best_radii_of(rows_of(file))


def best_radii_of(rows: list[dict[str, str]]) -> dict[str, float]:
    """The same by the rows themselves."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        found.setdefault((row["algorithm"], float(row["rho"])), []).append(float(row["final_accuracy"]))
    ascending = sorted(found, key=lambda key: statistics.fmean(found[key]))
    return dict(ascending)


@pytest.mark.slow
def test_a_tiny_cifar_study_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "tiny.npz", **arrays, y_train=np.arange(8) % 2, y_test=np.arange(8) % 2)
    tiny = ["--dataset", str(tmp_path / "tiny.npz"), "--partition", "iid", "--clients", "2", "--participation", "0.5"]
    tiny += ["--rounds", "3", "--local-steps", "1", "--batch-size", "2", "--eval-every", "3", "--no-sharpness"]
    tiny += ["--synthetic-start", "1", "--synthetic-segment", "1", "--synthetic-steps", "1", "--synthetic-images", "1"]
    study = ["--config", str(ROOT / "examples" / "studies" / "cifar10.toml"), "--algorithms", "fedsynsam"]
    assert main(["compare", *study, *tiny, "--checkpoint-every", "0", "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["algorithm"], row["model"], row["compressor"]) for row in rows] == [
        ("fedsynsam", "resnet18", "topk:0.01")
    ]
    assert int(rows[0]["downlink_bytes"]) > 3 * 4 * 11_000_000  # the weights in every round, and the synthetic set
