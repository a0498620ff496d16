"""Ctrl-C and SIGTERM while training: the first is noted, so that the step can be finished and saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class StopSignals:
    """In its ``with`` block the first signal sets ``reason``; a second one has the effect that it had before the block.

    Does nothing outside the main thread. Ctrl-C is left alone where it is ignored (as under nohup), SIGTERM where the
    program has a handler of its own.
    """

    reason: str | None = None

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in REASONS:
                before = signal.getsignal(number)
                if before is signal.SIG_DFL or (number == signal.SIGINT and callable(before)):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: Any) -> None:
        before = self._before[number]
        if self.reason is None:
            self.reason = REASONS[signal.Signals(number)]
            with suppress(OSError, ValueError, AttributeError):  # no stderr, or a closed one
                if sys.stderr.isatty():  # in one system call: a stream may be in the middle of another write
                    os.write(sys.stderr.fileno(), b"\nStopping after this step; again to stop at once.\n")
        elif callable(before):
            before(number, frame)
        else:
            signal.signal(number, before)
            signal.raise_signal(number)
