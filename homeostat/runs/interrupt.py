"""Signals that ask a run to stop: the first at its next step, the second at once.

Ctrl-C, and what a scheduler sends before it kills: SIGTERM, and SIGUSR1 where Slurm is told to.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A handler of someone else's, such as a launcher's that puts the job back into a queue, stays.
UNCLAIMED = (signal.SIG_DFL, signal.default_int_handler)
SAME_REQUEST_S = 0.5  # `timeout` and schedulers signal the process, then its whole group
NOTICE = b"\nStopping at the next step; press Ctrl-C again to stop at once.\n"


def stop_on_signals() -> None:
    """From here on, outside a run, every one of the signals stops the process as Ctrl-C does."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


class Stopped(KeyboardInterrupt):
    """Leaves the block of an `Interrupt`, which swallows it."""


class Interrupt:
    """While entered, the first signal only sets ``requested``, and `check` leaves the block."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) in UNCLAIMED:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        return isinstance(error, Stopped)

    def check(self) -> None:
        """Leave the block if that has been asked for.

        Raises:
            Stopped: It has been; what was being measured is to be measured again.
        """
        if self.requested:
            raise Stopped

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
            with suppress(OSError):
                os.write(1, NOTICE)  # print may be at work already, and is not to be entered twice
        elif time.monotonic() - self._since > SAME_REQUEST_S:
            raise KeyboardInterrupt
