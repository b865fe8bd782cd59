"""Progress of one run: a bar with accuracy and bytes on a terminal, a line an evaluation elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..fl.config import RunConfig
from ..fl.metrics import RoundMetrics, StepProgress
from ..report.text import bytes_text


class PlainProgress:
    """One line an evaluation on standard error, for logs and pipes."""

    def __init__(self, config: RunConfig) -> None:
        self._rounds, self._bytes = config.rounds, 0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def on_round(self, row: RoundMetrics) -> None:
        """Print a round that was evaluated."""
        self._bytes += row.uplink_bytes
        if row.test_accuracy is not None:
            text = f"round {row.round}/{self._rounds}  accuracy {100 * row.test_accuracy:.2f} %"
            print(f"{text}  uplink {bytes_text(self._bytes)}", file=sys.stderr, flush=True)

    def on_step(self, step: StepProgress) -> None:
        """Say nothing: the steps inside a round are for people who watch."""

    def on_note(self, text: str) -> None:
        """Print what there is to say before the first round."""
        print(text, file=sys.stderr, flush=True)


class BarProgress(PlainProgress):
    """A live bar for the rounds, and one for long work inside a round."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._main = self._bar.add_task(config.algorithm, total=config.rounds, facts="")
        self._stage = self._bar.add_task("", total=1, visible=False, facts="")

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def on_round(self, row: RoundMetrics) -> None:
        self._bytes += row.uplink_bytes
        facts = f"uplink {bytes_text(self._bytes)}"
        if row.test_accuracy is not None:
            self._accuracy = f"accuracy {100 * row.test_accuracy:.1f} %  "
        facts = getattr(self, "_accuracy", "") + facts
        self._bar.update(self._main, completed=row.round, facts=facts)
        self._bar.update(self._stage, visible=False)

    def on_step(self, step: StepProgress) -> None:
        facts = f"loss {step.value:.3f}"
        self._bar.update(
            self._stage, description=step.stage, completed=step.done, total=step.total, facts=facts, visible=True
        )

    def on_note(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)


def progress_of(config: RunConfig, quiet: bool = False) -> PlainProgress:
    """A bar where a person watches (standard error is a terminal and not `quiet`), plain lines elsewhere."""
    return BarProgress(config) if sys.stderr.isatty() and not quiet else PlainProgress(config)
