"""What a run shows on a terminal: a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

_REFRESH = 0.1  # seconds between two drawings of the bar
_DELAY = 0.5  # seconds that work may take before a bar appears for it


class Progress:
    """A bar over ``steps``, or over ``minutes`` of time, with loss, speed and time left; it begins at the
    step and second at which a run is resumed. Silent when stderr is no terminal or ``shown`` is False.
    """

    def __init__(self, *, steps: int | None, minutes: float | None, step: int, elapsed: float, shown: bool) -> None:
        self._timed = minutes is not None
        self._begun = False
        self._drawn = -_REFRESH
        self._bar: Any = None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            if minutes is not None:
                form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
                self._bar = tqdm(total=minutes * 60, initial=elapsed, bar_format=form, file=sys.stderr)
            else:
                self._bar = tqdm(total=steps, initial=step, unit="step", file=sys.stderr)

    def update(self, step: int, elapsed: float, figures: Mapping[str, float]) -> None:
        """Draw the bar at ``step`` and ``elapsed`` seconds, if the last drawing is old enough."""
        if self._bar is None or (now := time.monotonic()) - self._drawn < _REFRESH:
            return
        if not self._begun:  # the time that is shown, too, begins now
            self._bar.unpause()
            if not self._timed:
                self._bar.initial = step
            self._begun = True
        self._drawn = now
        self._bar.n = min(elapsed, self._bar.total) if self._timed else step
        texts = [f"step {step}"] if self._timed else []
        texts += [f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}" for name, value in figures.items()]
        self._bar.set_postfix_str(", ".join(texts))

    def wait(self, reason: str) -> None:
        """Say at once what is being waited for."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{reason} …")
            self._drawn = -_REFRESH  # the next update is drawn

    def close(self) -> None:
        """Leave the bar as it is and end the line."""
        if self._bar is not None:
            self._bar.close()


class Reading:
    """A bar over data that is read or looked at, on a terminal, where that takes more than a moment: call it with how
    many of how many ``unit`` are done."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._bar: Any = None
        self._shown = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if not self._shown:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                desc=self._what,
                unit=self._unit,
                unit_scale=True,
                leave=False,
                delay=_DELAY,
                file=sys.stderr,
            )
        if total != self._bar.total:  # what was downloaded is read
            self._bar.reset(total)
        self._bar.update(min(done, total) - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
