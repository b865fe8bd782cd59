"""Finished runs grouped by what a comparison compares, and the headline figure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from ..fl.algorithm import PRESETS
from ..fl.runfolder import FREE
from .runs import Run
from .text import value_text

BASELINES = ("fedavg", "fedsam", "fedlesam")  # of the headline figure
STUDY = ("real", "oracle")  # perturbations that no server and no client could make

# Settings that change no result, or only within the engines' tolerance.
CHANGES_NOTHING = {"engine", "device", *FREE}
# Settings in which the runs of a comparison may differ without a sweep: these and the lists.
NOT_SWEPT = {"algorithm", "compressor", "seed", "versions", *CHANGES_NOTHING}
# Settings in which even runs of different algorithms or compressors may not differ without a sweep.
TASK = (
    "dataset", "dataset_crc32", "partition", "alpha", "shards_per_client", "clients", "participation", "rounds",
    "local_steps", "batch_size", "lr", "model", "eval_every",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The runs of one algorithm with one compressor, and in a sweep with one value, over all seeds."""

    algorithm: str
    compressor: str
    runs: tuple[Run, ...]
    value: Any = None

    @property
    def is_rival(self) -> bool:
        """Whether it is neither a FedSynSAM nor one for study alone."""
        preset = PRESETS.get(self.algorithm)
        return preset is not None and preset.perturbation not in ("synthetic", *STUDY)

    @property
    def accuracies(self) -> list[float]:
        """Each seed's accuracy: the mean over the evaluations of the last fifth of the rounds."""
        return list(self.by_seed.values())

    @property
    def by_seed(self) -> dict[int, float]:
        """The accuracy of each seed."""
        return {run.config["seed"]: run.summary["final_accuracy"] for run in self.runs}

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the accuracy over the seeds; None for a single seed."""
        return statistics.stdev(self.accuracies) if len(self.runs) > 1 else None

    @property
    def uplink(self) -> float:
        """Mean bytes that a run's clients sent."""
        return statistics.fmean(run.summary["uplink_bytes"] for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """All groups, in the order in which the runs were given; in a sweep, `swept` is the setting that took values."""

    groups: tuple[Group, ...]
    swept: str | None = None

    @property
    def compressors(self) -> list[str]:
        """The compressors, each once."""
        return list(dict.fromkeys(group.compressor for group in self.groups))

    @property
    def algorithms(self) -> list[str]:
        """The algorithms, each once."""
        return list(dict.fromkeys(group.algorithm for group in self.groups))

    @property
    def values(self) -> list[Any]:
        """The values of the swept setting, each once; [None] without a sweep."""
        return list(dict.fromkeys(group.value for group in self.groups))

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs, ascending."""
        return sorted({seed for group in self.groups for seed in group.by_seed})

    def group(self, algorithm: str, compressor: str, value: Any = None) -> Group | None:
        """The group of `algorithm` with `compressor` (and `value`), if it was run."""
        wanted = (algorithm, compressor, value)
        found = [group for group in self.groups if (group.algorithm, group.compressor, group.value) == wanted]
        return found[0] if found else None

    def parts(self) -> list[tuple[str, Comparison]]:
        """A comparison without a sweep for each value, named `alpha = 0.1`; without a sweep, this one, named ``."""
        if self.swept is None:
            return [("", self)]
        return [
            (
                f"{self.swept} = {value_text(value)}",
                Comparison(tuple(replace(one, value=None) for one in self.groups if one.value == value)),
            )
            for value in self.values
        ]


def read_cells(runs: list[Run], swept: str | None = None) -> Comparison:
    """Group finished runs by algorithm, compressor and the value of the setting `swept`, numbers in ascending order.

    If the setting is not given, it is the one in which runs of one algorithm and compressor differ, or in which runs
    differ in their task. Several such settings raise `ConfigError`, and so do two runs that are the same but for their
    folder: a seed counts once.
    """
    swept = swept or _swept(runs)
    grouped: dict[tuple[str, str, Any], dict[int, Run]] = {}
    for run in runs:
        value = None if swept is None else run.config.get(swept)
        same = grouped.setdefault((run.config["algorithm"], run.config["compressor"], value), {})
        if (other := same.setdefault(run.config["seed"], run)) is not run:
            raise ConfigError(
                f"report: {str(other.path)!r} and {str(run.path)!r} are both {run.title}; give each seed once, or the "
                "folders one by one"
            )
    groups = [
        Group(algorithm, spec, tuple(members.values()), value) for (algorithm, spec, value), members in grouped.items()
    ]
    if all(isinstance(group.value, (int, float)) for group in groups):
        groups.sort(key=lambda group: group.value)
    return Comparison(tuple(groups), swept)


def _swept(runs: list[Run]) -> str | None:
    first: dict[tuple[str, str], Run] = {}
    differing: dict[str, None] = {}
    for run in runs:
        other = first.setdefault((run.config["algorithm"], run.config["compressor"]), run)
        for key, value in run.config.items():
            if (runs[0] if key in TASK else other).config.get(key, value) != value:
                differing[key] = None
    names = [key for key in differing if key not in NOT_SWEPT]
    if len(names) > 1:
        raise ConfigError(
            f"report: the runs differ in {', '.join(names)}; give runs that differ in one setting besides algorithm, "
            "compressor and seed"
        )
    return names[0] if names else None


def headlines(comparison: Comparison) -> list[dict[str, Any]]:
    """The headline figure of every compressor, in a sweep of every value; it is named as `setting` then."""
    return [
        {**({"setting": name} if name else {}), **headline(part, compressor)}
        for name, part in comparison.parts()
        for compressor in part.compressors
    ]


def headline(comparison: Comparison, compressor: str) -> dict[str, Any]:
    """The share of the possible gain that FedSynSAM takes: (FedSynSAM − best)/(realset − best), of mean accuracies.

    best = the best of FedAvg, FedSAM and FedLESAM; realset takes its perturbation from as many real images. The means
    are over `seeds`, those that all five finished. The value is None, with a `reason`, where a preset is missing, no
    seed is shared, or realset is no better than `best`.
    """
    groups = {group.algorithm: group for group in comparison.groups if group.compressor == compressor}
    figures: dict[str, Any] = {
        "compressor": compressor,
        "accuracy": {name: group.mean for name, group in groups.items()},
        "value": None,
    }
    needed = (*BASELINES, "fedsynsam", "realset")
    if missing := [name for name in needed if name not in groups]:
        return {**figures, "reason": f"not run: {', '.join(missing)}"}
    seeds = sorted(set.intersection(*(set(groups[name].by_seed) for name in needed)))
    if not seeds:
        return {**figures, "reason": "no seed was finished by all five"}
    if seeds != comparison.seeds:
        figures["seeds"] = seeds
    means = {name: statistics.fmean(groups[name].by_seed[seed] for seed in seeds) for name in needed}
    best = max(BASELINES, key=means.__getitem__)
    figures["best"] = best
    room = means["realset"] - means[best]
    if room <= 0:
        return {**figures, "reason": f"realset is no better than {best}: nothing to be gained"}
    return {**figures, "value": (means["fedsynsam"] - means[best]) / room}
