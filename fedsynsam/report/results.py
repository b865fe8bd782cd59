"""results.csv, a row a finished run; and what is said of settings that are not the same in every run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from typing import Any

from ..fl.algorithm import PRESETS, resolve
from ..fl.config import RunConfig
from .groups import CHANGES_NOTHING, FOLLOWS, Comparison
from .runs import Run
from .text import value_text

COLUMNS = [
    "algorithm",
    "compressor",
    "seed",
    "rho",
    "dataset",
    "partition",
    "alpha",
    "clients",
    "cohort",
    "rounds",
    "local_steps",
    "batch_size",
    "lr",
    "model",
    "final_accuracy",
    "last_accuracy",
    "uplink_bytes",
    "downlink_bytes",
    "uplink_ratio",
    "sharpness",
    "seconds",
    "config_sha256",
    "fedsynsam",
    "python",
    "torch",
    "numpy",
    "commit",
]


def results_csv(comparison: Comparison) -> str:
    """One row a finished run, with what it takes to make it again.

    Besides `COLUMNS` there is a column for a swept setting, and for each of the `unusual_settings`.
    """
    text = io.StringIO()
    more = [key for key in (comparison.swept, *unusual_settings(comparison)) if key is not None and key not in COLUMNS]
    writer = csv.DictWriter(text, [*COLUMNS, *dict.fromkeys(more)], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for group in comparison.groups:
        for run in group.runs:
            config = {key: value for key, value in run.config.items() if key != "versions"}
            digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
            cohort = run.summary["dense_uplink_bytes"] // (4 * run.summary["parameters"] * run.summary["rounds"])
            versions = {"cohort": cohort, "config_sha256": digest, **run.config["versions"]}
            writer.writerow({**config, **run.summary, **versions})
    return text.getvalue()


def unusual_settings(comparison: Comparison) -> list[str]:
    """The settings that decide results, are not among `COLUMNS`, and differ from their default in some run."""
    names = [key for key in RunConfig().to_dict() if key not in (*COLUMNS, *CHANGES_NOTHING)]
    runs = [(run, _defaults(run)) for group in comparison.groups for run in group.runs]
    return [key for key in names if any(run.config.get(key, usual[key]) != usual[key] for run, usual in runs)]


def settings_note(comparison: Comparison) -> str | None:
    """Which of the `unusual_settings`, the swept one apart, have several values, and where; None if none has."""
    told = []
    for key in unusual_settings(comparison):
        if comparison.swept is not None and comparison.swept in (key, FOLLOWS.get(key)):
            continue
        values = {
            (group.algorithm, group.compressor): value_text(run.config.get(key, _defaults(run)[key]))
            for group in comparison.groups
            for run in group.runs
        }
        if len(set(values.values())) > 1:
            told.append(f"{key} {_places(values)}")
    return f"Not every run has the same settings: {'; '.join(told)}." if told else None


def _defaults(run: Run) -> dict[str, Any]:
    """The settings of a run of the same algorithm for which nothing was given but the synthetic set."""
    algorithm = run.config["algorithm"] if run.config["algorithm"] in PRESETS else "fedavg"
    return resolve(RunConfig(algorithm=algorithm, synthetic=run.config.get("synthetic"))).to_dict()


def _places(values: dict[tuple[str, str], str]) -> str:
    """`none in fedavg, 10 in feddyn and fedsam`; an algorithm with several values is told by compressor, too."""
    several = {name for name, _ in values if len({value for key, value in values.items() if key[0] == name}) > 1}
    places: dict[str, dict[str, None]] = {}
    for (name, spec), value in values.items():
        places.setdefault(value, {})[f"{name} under {spec}" if name in several else name] = None
    return ", ".join(f"{value} in {' and '.join(names)}" for value, names in places.items())
