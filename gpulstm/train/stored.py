"""What a trainer's checkpoint holds besides parameters, read again and checked: errors name the file and the field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, checks, parsing
from .checkpoint import CheckpointError

_DEEPEST = 100  # tuples inside each other in a state


@dataclass(frozen=True)
class Record:
    """What :meth:`gpulstm.train.Trainer.save` writes as JSON."""

    config: dict[str, Any]
    rng: Any
    data: dict[str, Any]
    best: float | None
    best_step: int
    waited: int
    elapsed: float
    timed: tuple[int, float]
    loss: float
    validation: dict[str, float]

    @classmethod
    def of(cls, record: Mapping[str, Any], metric: str) -> Record:
        """
        Raises:
            ValueError, TypeError: a field is missing or not what was written; the message names it.
        """
        fields = parsing.Fields(record, "record")
        early = fields.fields("early_stopping")
        validation = fields.fields("validation", ("loss", metric) if fields.take("validation") else ())
        timed = fields.take("timed")
        if not isinstance(timed, list) or len(timed) != 2:
            raise TypeError(f"record.timed: expected tokens and seconds, got {checks.shown(timed)}")
        pair = parsing.Fields({"tokens": timed[0], "seconds": timed[1]}, "record.timed")
        return cls(
            fields.fields("config").value,
            fields.take("rng"),
            fields.fields("data").value,
            None if early.take("best") is None else early.real("best"),
            early.integer("best_step"),
            early.integer("waited"),
            fields.real("elapsed", "[0, inf)"),
            (pair.integer("tokens"), pair.real("seconds", "[0, inf)")),
            math.nan if fields.take("loss") is None else fields.real("loss"),
            {name: math.nan if value is None else validation.real(name) for name, value in validation.value.items()},
        )


@contextmanager
def naming(file: Path, what: str = "") -> Iterator[None]:
    """Errors of what was read from ``file`` name it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {what}{error}") from error


def check_rng(state: Any, rng: np.random.Generator) -> None:
    """Whether ``state`` is one of a generator as ``rng``.

    Raises:
        ValueError: it is none.
    """
    bits = type(rng.bit_generator)()
    try:
        bits.state = state
        fits = bits.state == state
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError):
        fits = False
    if not fits:
        kind = type(bits).__name__
        raise ValueError(f"record.rng: expected the state of NumPy's {kind}, got {checks.shown(state)}")


def under(saved: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}


def flatten(state: Any, name: str) -> dict[str, np.ndarray]:
    """Nested tuples of arrays as a flat dict: "state.0.1" is ``state[0][1]``, "state.1.empty" says that [1] is ()."""
    if state is None:
        return {}
    if not isinstance(state, tuple):
        return {name: arrays.on_host(state, name)}
    if not state:
        return {f"{name}.empty": np.empty(0)}
    flat: dict[str, np.ndarray] = {}
    for index, part in enumerate(state):
        flat |= flatten(part, f"{name}.{index}")
    return flat


def nest(flat: Mapping[str, np.ndarray], depth: int = 0) -> Any:
    """The inverse of :func:`flatten`, of names behind "state": None where there are none.

    Raises:
        ValueError: names that are not those of a state.
    """
    if len(flat) <= 1 and not flat.keys() - {""}:
        return flat.get("")
    if flat.keys() == {".empty"}:
        return ()
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in flat.items():
        index, dot, rest = name.removeprefix(".").partition(".")
        parts.setdefault(index, {})[dot + rest] = value
    if depth > _DEEPEST or parts.keys() != set(map(str, range(len(parts)))):
        raise ValueError(f"state: expected tensors numbered from state.0 on, got {checks.shown(sorted(flat))}")
    return tuple(nest(parts[str(index)], depth + 1) for index in range(len(parts)))
