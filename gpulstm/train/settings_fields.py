"""Fields of settings: what a value may be, its default and its help, said once.

The classes here are validators of ``attrs``, whose errors are those of :mod:`gpulstm.checks`; the command line makes
its options of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs

from .. import checks


class Kind:
    """What the value of a field may be; None may be one too where it is the default."""

    def check(self, value: Any, name: str) -> Any:
        """``value``, once it is right.

        Raises:
            ValueError, TypeError: it is not; the message names the field.
        """
        raise NotImplementedError

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

    def check(self, value: Any, name: str) -> tuple[str, ...]:
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{name}: expected a tuple of names, got {checks.shown(value)}")
        return tuple(checks.choice(part, name, self.known) for part in value)


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
        converter=_as_tuple if isinstance(default, tuple) else None,
        metadata={"kind": kind, "help": help, "metavar": metavar, "fixed": fixed or digested, "digested": digested},
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
