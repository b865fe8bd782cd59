"""Finished runs grouped by what a comparison compares, and the headline figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..fl.algorithm import PRESETS
from ..fl.runfolder import FREE
from .runs import Run
from .text import value_text

BASELINES = ("fedavg", "fedsam", "fedlesam")  # of the headline figure
STUDY = ("real", "oracle")  # perturbations that no server and no client could make

# Settings that change no result, or only within the engines' tolerance.
CHANGES_NOTHING = {"engine", "device", "encode", "cosines", "sharpness", *FREE}
# Settings in which the runs of a comparison may differ without a sweep: these and the lists.
NOT_SWEPT = {"algorithm", "compressor", "seed", "versions", *CHANGES_NOTHING}
# Settings in which even runs of different algorithms or compressors may not differ without a sweep.
TASK = (
    "dataset", "dataset_crc32", "synthetic_crc32", "partition", "alpha", "shards_per_client", "clients",
    "participation", "rounds", "local_steps", "batch_size", "lr", "model", "eval_every",
)  # fmt: skip
# What differs where another setting does, unless runs with the same value of that one differ in it.
FOLLOWS = {"dataset_crc32": "dataset", "synthetic_crc32": "synthetic", "synthetic_every": "synthetic"}
NOISE = 1e-9  # differences of accuracies below this are those of rounding


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


class Planned(NamedTuple):
    """A run that belongs to a comparison, finished or not."""

    algorithm: str
    compressor: str
    value: Any
    seed: int


@dataclass(frozen=True)
class Comparison:
    """All groups with a finished run, and all runs that were planned, in the order in which they were given.

    In a sweep, `swept` is the setting that took values. `lost` is what planned runs are that left no result: failed,
    or unfinished where that is all that is known.
    """

    groups: tuple[Group, ...]
    planned: tuple[Planned, ...]
    swept: str | None = None
    lost: str = "failed"

    @property
    def compressors(self) -> list[str]:
        """The compressors, each once."""
        return list(dict.fromkeys(one.compressor for one in self.planned))

    @property
    def algorithms(self) -> list[str]:
        """The algorithms, each once."""
        return list(dict.fromkeys(one.algorithm for one in self.planned))

    @property
    def values(self) -> list[Any]:
        """The values of the swept setting, each once; [None] without a sweep."""
        return list(dict.fromkeys(one.value for one in self.planned))

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs, ascending."""
        return sorted({one.seed for one in self.planned})

    def planned_seeds(self, algorithm: str, compressor: str) -> list[int]:
        """The seeds with which `algorithm` was to run with `compressor`."""
        return [one.seed for one in self.planned if (one.algorithm, one.compressor) == (algorithm, compressor)]

    def group(self, algorithm: str, compressor: str, value: Any = None) -> Group | None:
        """The group of `algorithm` with `compressor` (and `value`), if some run of it finished."""
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
                Comparison(
                    tuple(replace(one, value=None) for one in self.groups if one.value == value),
                    tuple(one._replace(value=None) for one in self.planned if one.value == value),
                    lost=self.lost,
                ),
            )
            for value in self.values
        ]


def read_cells(
    runs: list[Run], swept: str | None = None, planned: Sequence[dict[str, Any]] = (), lost: str = "failed"
) -> Comparison:
    """Group finished runs by algorithm, compressor and the value of the setting `swept`, numbers in ascending order.

    `planned` are the settings of runs that belong to the comparison besides `runs`, or of all that do; `lost` is said
    of those that left no result. If the setting is not given, it is the one in which runs of one algorithm and
    compressor differ, or in which runs differ in their task. Several such settings raise `ConfigError`, and so do two
    runs that are the same but for their folder: a seed counts once.
    """
    configs = [*planned, *(run.config for run in runs)]
    swept = swept or _swept(configs)
    cells = [_planned(config, swept) for config in configs]
    grouped: dict[tuple[str, str, Any], dict[int, Run]] = {}
    for run in runs:
        same = grouped.setdefault(_planned(run.config, swept)[:3], {})
        if (other := same.setdefault(run.config["seed"], run)) is not run:
            raise ConfigError(
                f"report: {str(other.path)!r} and {str(run.path)!r} are both {run.title}; give each seed once, or the "
                "folders one by one"
            )
    groups = [
        Group(algorithm, spec, tuple(members.values()), value) for (algorithm, spec, value), members in grouped.items()
    ]
    if all(isinstance(cell.value, (int, float)) for cell in cells):
        groups.sort(key=lambda group: group.value)
        cells.sort(key=lambda cell: cell.value)
    return Comparison(tuple(groups), tuple(dict.fromkeys(cells)), swept, lost)


def _planned(config: dict[str, Any], swept: str | None) -> Planned:
    value = None if swept is None else config.get(swept)
    return Planned(config["algorithm"], config["compressor"], value, config["seed"])


def _swept(configs: list[dict[str, Any]]) -> str | None:
    task: dict[str, Any] = {}  # the first value of each setting that must be the same everywhere
    own: dict[tuple[str, str], dict[str, Any]] = {}  # and, of each algorithm and compressor, of the others
    differing: dict[str, None] = {}
    for config in configs:
        others = own.setdefault((config["algorithm"], config["compressor"]), {})
        for key, value in config.items():
            if (task if key in TASK else others).setdefault(key, value) != value:
                differing[key] = None
    names = [
        key
        for key in differing
        if key not in NOT_SWEPT and not (FOLLOWS.get(key) in differing and _follows(key, FOLLOWS[key], configs))
    ]
    if len(names) > 1:
        raise ConfigError(
            f"report: the runs differ in {', '.join(names)}; give runs that differ in one setting besides algorithm, "
            "compressor and seed"
        )
    return names[0] if names else None


def _follows(key: str, leader: str, configs: list[dict[str, Any]]) -> bool:
    """Whether the setting `key` has one value for each value of the setting `leader`."""
    pairs = {(config.get(leader), config[key]) for config in configs if key in config}
    return len(pairs) == len({value for value, _ in pairs})


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
    are over `seeds`, those that all five finished. The value is None, with a `reason`, where a preset is missing or
    finished in no seed, no seed is shared, or realset is no better than `best`.
    """
    groups = {group.algorithm: group for group in comparison.groups if group.compressor == compressor}
    figures: dict[str, Any] = {
        "compressor": compressor,
        "accuracy": {name: group.mean for name, group in groups.items()},
        "value": None,
    }
    needed = (*BASELINES, "fedsynsam", "realset")
    if missing := [name for name in needed if name not in groups]:
        lost = [name for name in missing if comparison.planned_seeds(name, compressor)]
        absent = [name for name in missing if name not in lost]
        reasons = [(f"{comparison.lost} in every seed", lost), ("not run", absent)]
        return {**figures, "reason": "; ".join(f"{what}: {', '.join(names)}" for what, names in reasons if names)}
    seeds = sorted(set.intersection(*(set(groups[name].by_seed) for name in needed)))
    if not seeds:
        return {**figures, "reason": "no seed was finished by all five"}
    if seeds != comparison.seeds:
        figures["seeds"] = seeds
    means = {name: statistics.fmean(groups[name].by_seed[seed] for seed in seeds) for name in needed}
    best = max(BASELINES, key=means.__getitem__)
    figures["best"] = best
    room = means["realset"] - means[best]
    if room < NOISE:
        return {**figures, "reason": f"realset is no better than {best}: nothing to be gained"}
    return {**figures, "value": (means["fedsynsam"] - means[best]) / room}
