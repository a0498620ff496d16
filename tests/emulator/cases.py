"""A call of a cell with all that it may have, as the tests of the walks take it."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """Of a call: sizes, and what is in it."""

    hidden: int
    dtype: str = "float32"
    steps: int = 5
    batch: int = 3
    directions: int = 2
    bias: bool = True
    ragged: bool = True
    resets: bool = True
    scalar_inputs: bool = False
