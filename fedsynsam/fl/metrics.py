"""What a run reports: one `RoundMetrics` a round, a `StepProgress` within long work, a `RunResult` at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsynsam.fl.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """One line of `metrics.jsonl`. Fields that were not measured in this round are None.

    `round` counts from 1. Bytes are lengths of real payloads (uplink) and tensors (downlink), summed over the cohort.
    `cosines` maps the name of an estimator to its mean cosine with the global gradient. A round before which the
    synthetic set was learned has the matching loss that this ended with (the mean over the last tenth of its steps)
    and the seconds it took, which `seconds` includes; none, if the run was resumed between learning and that round.
    """

    round: int
    train_loss: float
    uplink_bytes: int
    downlink_bytes: int
    seconds: float
    test_accuracy: float | None = None
    test_loss: float | None = None
    cosines: dict[str, float] | None = None
    sharpness: float | None = None
    synthetic_loss: float | None = None
    synthetic_seconds: float | None = None

    def to_json(self) -> str:
        """One line of JSON, without a newline; optional fields appear only when they were measured."""
        values = dataclasses.asdict(self)
        for name in ("cosines", "sharpness", "synthetic_loss", "synthetic_seconds"):
            if values[name] is None:
                del values[name]
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str) -> RoundMetrics:
        """The inverse of `to_json`; raises `ValueError` when `line` is something else."""
        try:
            return cls(**json.loads(line))
        except TypeError:
            raise ValueError(f"{line[:40]!r} is not the line of a round") from None


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """Progress inside one long piece of work, such as learning the synthetic set (`stage` "synthesis").

    `value` is the figure being improved (the matching loss).
    """

    stage: str
    done: int
    total: int
    round: int
    value: float


class CutShort(Exception):
    """Raised by an `on_step` callback to end the present stage early; what it has learned so far is used."""


OnRound = Callable[[RoundMetrics], None]  # sees each finished round
OnStep = Callable[[StepProgress], None]  # sees each step of a long stage, and may raise `CutShort`


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run: the resolved configuration, its rounds, and the summary that `summary.json` holds.

    `summary` keys: algorithm, compressor, seed, rounds, final_accuracy (mean over the evaluations of the last fifth
    of the rounds), last_accuracy, best_accuracy, uplink_bytes, downlink_bytes, dense_uplink_bytes, uplink_ratio,
    parameters, seconds, sharpness (the last one measured, or None).
    """

    config: RunConfig
    rounds: list[RoundMetrics]
    summary: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
