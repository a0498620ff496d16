"""What a trainer's checkpoint holds besides parameters, written and read again; errors name the file and the field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, checks, optim, parsing
from .checkpoint import MODEL, RECORD, TRAINING, Checkpoint, CheckpointError
from .task import Task

_DEEPEST = 100  # tuples inside each other in a state


@dataclass(frozen=True)
class Record:
    """What :meth:`gpulstm.train.Trainer.save` writes as JSON, but for the caller's settings."""

    config: dict[str, Any]
    rng: Any
    data: dict[str, Any]
    early_stopping: dict[str, Any]
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
        whole = parsing.Fields(record, "record")
        early = whole.fields("early_stopping")
        validation = whole.fields("validation", ("loss", metric) if whole.take("validation") else ())
        timed = whole.take("timed")
        if not isinstance(timed, list) or len(timed) != 2:
            raise TypeError(f"record.timed: expected tokens and seconds, got {checks.shown(timed)}")
        pair = parsing.Fields({"tokens": timed[0], "seconds": timed[1]}, "record.timed")
        return cls(
            config=whole.fields("config").value,
            rng=whole.take("rng"),
            data=whole.fields("data").value,
            early_stopping={
                "best": None if early.take("best") is None else early.real("best"),
                "best_step": early.integer("best_step"),
                "waited": early.integer("waited"),
            },
            elapsed=whole.real("elapsed", "[0, inf)"),
            timed=(pair.integer("tokens"), pair.real("seconds", "[0, inf)")),
            loss=math.nan if whole.take("loss") is None else whole.real("loss"),
            validation={
                name: math.nan if value is None else validation.real(name) for name, value in validation.value.items()
            },
        )

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON can hold them, which knows neither NaN nor infinity: such a number is None."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        validation = {name: _finite(value) for name, value in self.validation.items()}
        return record | {"timed": list(self.timed), "loss": _finite(self.loss), "validation": validation}


def training(optimizer: optim.Optimizer, schedule: optim.Schedule, state: Any) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint besides parameters, by name."""
    return {
        **{f"optimizer.{name}": value for name, value in optimizer.state_dict().items()},
        **{f"schedule.{name}": value for name, value in schedule.state_dict().items()},
        **flatten(state, "state"),
    }


def read(saved: Checkpoint, task: Task, rng: np.random.Generator) -> tuple[Record, Any]:
    """The record and the carried state of ``saved``.

    Raises:
        CheckpointError: a field that is none, or a checkpoint of another model, other data or another generator.
    """
    file = saved.path / RECORD
    with naming(file):
        record = Record.of(saved.record, task.metric)
        check_rng(record.rng, rng)
    for name, value in task.config.items():
        found = record.config.get(name)
        if found != value:
            raise CheckpointError(f"{file}: made with {name} {checks.shown(found)}, expected {value!r}")
    with naming(saved.path / TRAINING):
        return record, nest(under(saved.training, "state"))


def load_parts(
    saved: Checkpoint, record: Record, task: Task, optimizer: optim.Optimizer, schedule: optim.Schedule | None
) -> None:
    """Load the states of batches, model, optimizer and, unless it is None, schedule.

    Raises:
        CheckpointError: one of them does not fit.
    """
    file = saved.path / TRAINING
    parts: list[tuple[Path, str, Any, Any]] = [
        (saved.path / RECORD, "data", task.batches, record.data),
        (saved.path / MODEL, "model", task.model, saved.model),
        (file, "optimizer", optimizer, under(saved.training, "optimizer.")),
    ]
    if schedule is not None:
        parts.append((file, "schedule", schedule, under(saved.training, "schedule.")))
    for source, name, part, value in parts:
        with naming(source, f"does not fit this run: {name}: "):
            part.load_state_dict(value)
    with naming(file, "does not fit this run: optimizer: "):
        optimizer.check_state(task.model.params)


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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
