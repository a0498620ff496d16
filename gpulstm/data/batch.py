"""What one step of training is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batch:
    """One training step's data: arrays by name, time-major (T, B, ...) where they have steps.

    A model is called with ``inputs``, unless its task says otherwise; the loss gets the whole batch, so that a task may
    have further arrays (``targets``, a mask, features without steps). ``fresh`` says that new sequences begin, so that
    no state is carried into them; ``lengths`` (B,) or None. ``tokens`` is what the speed of a run counts, 0 for the
    steps of all sequences of ``inputs`` together.
    """

    arrays: Mapping[str, Any]
    fresh: bool = True
    lengths: Any = None
    tokens: int = 0

    def __post_init__(self) -> None:
        if not self.tokens:
            steps, sequences = self.arrays["inputs"].shape[:2]
            tokens = int(steps * sequences if self.lengths is None else self.lengths.sum())
            object.__setattr__(self, "tokens", tokens)

    def __getitem__(self, name: str) -> Any:
        """The array called ``name``."""
        return self.arrays[name]
