"""The paired comparison over seeds: each algorithm against the best of FedAvg, FedSAM and FedLESAM. Needs SciPy."""

from __future__ import annotations

import statistics

from scipy import stats

from .groups import BASELINES, Comparison, Group

HEADER = [
    "algorithm",
    "compressor",
    "against",
    "difference, points (mean ± sd)",
    "seeds",
    "p (paired t-test)",
]


def paired_rows(comparison: Comparison) -> list[list[str]]:
    """A row for each algorithm and compressor that shares at least two seeds with the best baseline there."""
    rows = []
    for compressor in comparison.compressors:
        groups = [group for group in comparison.groups if group.compressor == compressor]
        baselines = [group for group in groups if group.algorithm in BASELINES]
        if not baselines:
            continue
        best = max(baselines, key=lambda group: group.mean)
        for group in groups:
            if group is best:
                continue
            differences = _differences(group, best)
            if len(differences) < 2:
                continue
            mean, spread = statistics.fmean(differences), statistics.stdev(differences)
            p = stats.ttest_1samp(differences, 0.0).pvalue if spread > 0 else float("nan")
            cells = [f"{mean:+.2f} ± {spread:.2f}", str(len(differences)), f"{p:.3f}"]
            rows.append([group.algorithm, compressor, best.algorithm, *cells])
    return rows


def _differences(group: Group, best: Group) -> list[float]:
    """Accuracy minus that of `best`, in points, of the seeds that both have."""
    theirs = {run.config["seed"]: run.summary["final_accuracy"] for run in best.runs}
    return [
        100 * (run.summary["final_accuracy"] - theirs[run.config["seed"]])
        for run in group.runs
        if run.config["seed"] in theirs
    ]
