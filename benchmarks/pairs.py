"""Paired comparisons over seeds of a comparison's cells: `python -m benchmarks.pairs ALGORITHM RESULTS.csv … --out FILE.csv`.

Each RESULTS.csv is one that `fedsynsam compare` wrote; no cell may be in two. A row compares ALGORITHM with another
algorithm under the same compressor, or an algorithm under a compressor with itself under `none`, over the seeds that
both have. For accuracy (in points) and for the largest eigenvalue of the Hessian it has the mean and the standard
deviation of the differences, in how many seeds they are positive, and the p of a paired t-test. Needs SciPy.
"""  # noqa: E501

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import write_rows

Cells = dict[tuple[str, str], dict[int, tuple[float, float]]]  # by algorithm and compressor, then by seed


def read(paths: Sequence[Path]) -> Cells:
    """Accuracy in per cent and largest eigenvalue of every cell."""
    cells: Cells = {}
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                own, seed = cells.setdefault((row["algorithm"], row["compressor"]), {}), int(row["seed"])
                if seed in own:
                    raise SystemExit(f"{path}: {row['algorithm']}, {row['compressor']}, seed {seed} is there twice")
                own[seed] = (100 * float(row["final_accuracy"]), float(row["sharpness"] or "nan"))
    return cells


def compared(cells: Cells, one: tuple[str, str], other: tuple[str, str]) -> dict[str, Any]:
    """The row of `one` minus `other`, (algorithm, compressor) each."""
    from scipy import stats

    seeds = sorted(cells[one].keys() & cells[other].keys())
    row: dict[str, Any] = {"algorithm": one[0], "compressor": one[1], "against": other[0], "under": other[1]}
    row["seeds"] = len(seeds)
    for place, name in enumerate(("accuracy", "sharpness")):
        differences = [cells[one][seed][place] - cells[other][seed][place] for seed in seeds]
        if len(differences) < 2 or not all(map(math.isfinite, differences)):
            continue
        row[name] = f"{statistics.fmean(differences):.3f}"
        row[f"{name}_deviation"] = f"{statistics.stdev(differences):.3f}"
        row[f"{name}_above"] = sum(value > 0 for value in differences)
        row[f"{name}_p"] = f"{stats.ttest_1samp(differences, 0.0).pvalue:.2g}"
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows of every pair."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("algorithm")
    parser.add_argument("results", type=Path, nargs="+", help="results.csv of comparisons")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    options = parser.parse_args(arguments)
    cells = read(options.results)
    if options.algorithm not in {name for name, _ in cells}:
        parser.error(f"{options.algorithm} is in none of the files")
    pairs = [
        ((options.algorithm, spec), (name, spec))
        for name, spec in cells
        if name != options.algorithm and (options.algorithm, spec) in cells
    ]
    pairs += [((name, spec), (name, "none")) for name, spec in cells if spec != "none" and (name, "none") in cells]
    rows = [compared(cells, *pair) for pair in pairs]
    kinds = [f"{name}{part}" for name in ("accuracy", "sharpness") for part in ("", "_deviation", "_above", "_p")]
    write_rows(rows, ["algorithm", "compressor", "against", "under", "seeds", *kinds], options.out)


if __name__ == "__main__":
    main()
