"""What one step of training is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks


@dataclass(frozen=True)
class Batch:
    """One training step's data: arrays by name, time-major (T, B, ...) where they have steps.

    A model is called with ``inputs``, unless its task says otherwise; the loss gets the whole batch, so that a task may
    have further arrays (``targets``, a mask, features without steps). ``fresh`` says that new sequences begin, so that
    no state is carried into them; ``lengths`` (B,) or None. ``tokens`` is what the speed of a run counts, None for the
    steps of all sequences of ``inputs`` together.

    Raises:
        TypeError: ``arrays`` is no dict of arrays by name, ``tokens`` no integer.
        ValueError: ``tokens`` below 0, or None where ``inputs`` do not say how many there are.
    """

    arrays: Mapping[str, Any]
    fresh: bool = True
    lengths: Any = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if type(self.arrays) is not dict or set(map(type, self.arrays)) != {str}:  # what is so is quickly seen
            checks.named(self.arrays, "arrays")
        tokens = self._count() if self.tokens is None else checks.integer(self.tokens, "tokens", 0)
        object.__setattr__(self, "tokens", tokens)

    def _count(self) -> int:
        shape: tuple[int, ...] = np.shape(self.arrays["inputs"]) if "inputs" in self.arrays else ()
        if len(shape) < 2:
            raise ValueError(
                "tokens: expected a number where no array is called 'inputs' of shape (T, B, ...), got arrays named "
                f"{checks.shown(sorted(self.arrays))}"
            )
        return int(shape[0] * shape[1] if self.lengths is None else np.sum(self.lengths))

    def __getitem__(self, name: str) -> Any:
        """The array called ``name``."""
        return self.arrays[name]
