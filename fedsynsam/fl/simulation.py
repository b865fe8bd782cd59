"""A whole federated run on one machine: `Simulation(config, out).run()`."""

from __future__ import annotations

from pathlib import Path

from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.metrics import OnRound, OnStep, RunResult


class Simulation:
    """One federated run, written to the folder `out` (None writes nothing).

    The folder gets `config.json` (resolved, with versions and commit), `metrics.jsonl` (one line a round),
    `summary.json` and `checkpoint/`. A folder that holds another run raises `ConfigError`; `resume=True` goes on
    from its checkpoint, whose configuration must be the same.
    """

    def __init__(self, config: RunConfig, out: Path | None = None, *, resume: bool = False) -> None:
        self.config, self.out, self.resume = config, out, resume

    def run(self, on_round: OnRound | None = None, on_step: OnStep | None = None) -> RunResult:
        """Run all rounds; `on_round` sees each round's metrics, `on_step` the progress within long work."""
        raise NotImplementedError
