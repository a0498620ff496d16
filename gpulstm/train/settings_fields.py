"""Fields of settings: what a value may be, its default and its help, said once.

The classes here are validators of ``attrs``, whose errors are those of :mod:`gpulstm.checks`; the command line makes
its options of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

import attrs

from .. import cells, checks


class Kind:
    """What the value of a field may be; None may be one too where it is the default."""

    def check(self, value: Any, name: str) -> Any:
        """``value``, once it is right.

        Raises:
            ValueError, TypeError: it is not; the message names the field.
        """
        raise NotImplementedError

    def converted(self, value: Any) -> Any:
        """What a field holds where ``value`` is given; checked afterwards."""
        return value

    def __call__(self, instance: Any, attribute: Any, value: Any) -> None:
        self.check(value, attribute.name)


@attrs.frozen
class Integer(Kind):
    """An integer of at least ``minimum``."""

    minimum: int = 1

    def check(self, value: Any, name: str) -> int:
        return checks.integer(value, name, self.minimum)


@attrs.frozen
class Real(Kind):
    """A number in an interval, see :func:`gpulstm.checks.real`."""

    interval: str

    def check(self, value: Any, name: str) -> float:
        return checks.real(value, name, self.interval)


@attrs.frozen
class Choice(Kind):
    """One of several names."""

    known: Collection[str]

    def check(self, value: Any, name: str) -> str:
        return checks.choice(value, name, self.known)


@attrs.frozen
class Choices(Kind):
    """Any number of several names, in a tuple or a list."""

    known: Collection[str]

    def converted(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def check(self, value: Any, name: str) -> tuple[str, ...]:
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{name}: expected a tuple of names, got {checks.shown(value)}")
        return tuple(checks.choice(part, name, self.known) for part in value)


@attrs.frozen
class CellName(Kind):
    """The name of a cell that is known and needs no inputs of its own; or ``module:cell``, which is imported."""

    def converted(self, value: Any) -> Any:
        """The name, also of a cell that is imported.

        Raises:
            ValueError: the module cannot be imported, or has no such cell.
        """
        if not isinstance(value, str) or ":" not in value:
            return value
        module, name = value.split(":", 1)
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty name
            raise ValueError(f"cell: {checks.shown(value)} cannot be imported: {error}") from error
        if not isinstance(found, cells.Cell):
            raise ValueError(f"cell: expected a cell in {checks.shown(value)}, got {checks.shown(found)}")
        return cells.get(found).name

    def check(self, value: Any, name: str) -> str:
        found = cells.get(checks.text(value, name))
        if found.inputs:
            own = ", ".join(found.inputs)
            raise ValueError(f"{name}: expected a cell without inputs of its own, got {value!r}, which takes {own}")
        return found.name


@attrs.frozen
class Text(Kind):
    """A string."""

    def check(self, value: Any, name: str) -> str:
        return checks.text(value, name)


@attrs.frozen
class Path(Kind):
    """A path."""

    def check(self, value: Any, name: str) -> Any:
        checks.path(value, name)
        return value


def field(
    default: Any, kind: Kind, help: str, *, metavar: str | None = None, fixed: bool = False, digested: bool = False
) -> Any:
    """A field of a class of settings.

    Args:
        default: None for a field that may have no value.
        kind: what its values may be.
        help: what it is for, in a sentence or less.
        metavar: what the help of the command line calls a value.
        fixed: whether a run cannot change it when it is resumed: it makes the model, what the model learns from, or
            what the checkpoint holds the state of.
        digested: whether it says where the data is, which may move, so that checkpoints hold the data's digest in its
            place; it is fixed too.
    """
    return attrs.field(
        default=default,
        validator=attrs.validators.optional(kind) if default is None else kind,
        converter=kind.converted,
        metadata={"kind": kind, "help": help, "metavar": metavar, "fixed": fixed or digested, "digested": digested},
    )
