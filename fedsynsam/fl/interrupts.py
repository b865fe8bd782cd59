"""SIGINT and SIGTERM as a wish that a run reads between clients and rounds, so that it can leave a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop by the signal `signum`; what it had finished is in its checkpoint."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(*([message] if message else []))
        self.signum = signum


class Interrupts:
    """Remembers the first SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    @contextlib.contextmanager
    def watched(self, *, patient: bool) -> Iterator[None]:
        """Inside, signals are remembered; a second one of its kind does what it always did, unless `patient`.

        In a thread other than the main one this does nothing, because Python does not allow it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def remember(number: int, _: FrameType | None) -> None:
            self.signum = self.signum or number
            if not patient:
                signal.signal(number, before[signal.Signals(number)])

        for number in SIGNALS:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number in SIGNALS:
                signal.signal(number, before[number])
