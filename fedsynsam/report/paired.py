"""The paired comparison over seeds: each algorithm against the best of FedSynSAM's rivals. Needs SciPy."""

from __future__ import annotations

import statistics

from scipy import stats

from .groups import NOISE, Comparison, Group

PAIRED = "Seed by seed, against the best of FedSynSAM's rivals"
HEADER = [
    "algorithm",
    "compressor",
    "against",
    "difference, points (mean ± sd)",
    "seeds",
    "p (paired t-test)",
]


def paired_table(comparison: Comparison) -> list[list[str]]:
    """Header and rows of a comparison, in a sweep with a column for its value; empty where no two seeds are shared."""
    swept, rows = comparison.swept, list[list[str]]()
    for name, part in comparison.parts():
        own = [name.split(" = ")[1]] if swept else []
        rows += [[row[0], *own, *row[1:]] for row in _rows(part)]
    return [[HEADER[0], *([swept] if swept else []), *HEADER[1:]], *rows] if rows else []


def _rows(comparison: Comparison) -> list[list[str]]:
    """A row for each algorithm and compressor that shares at least two seeds with the best rival there."""
    rows = []
    for compressor in comparison.compressors:
        groups = [group for group in comparison.groups if group.compressor == compressor]
        rivals = [group for group in groups if group.is_rival]
        if not rivals:
            continue
        # one that failed in some seeds is not the best, however well it did in the others
        best = max(rivals, key=lambda group: (len(group.runs), group.mean))
        for group in groups:
            if group is best:
                continue
            differences = _differences(group, best)
            if len(differences) < 2:
                continue
            mean, spread = statistics.fmean(differences), statistics.stdev(differences)
            p = f"{stats.ttest_1samp(differences, 0.0).pvalue:.2g}" if spread > NOISE else ""
            cells = [f"{mean:+.2f} ± {spread:.2f}", str(len(differences)), p]
            rows.append([group.algorithm, compressor, best.algorithm, *cells])
    return rows


def _differences(group: Group, best: Group) -> list[float]:
    """Accuracy minus that of `best`, in points, of the seeds that both have."""
    return [100 * (own - best.by_seed[seed]) for seed, own in group.by_seed.items() if seed in best.by_seed]
