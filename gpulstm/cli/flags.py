"""Options of commands, made of the fields of settings: flag, type, range, default and help."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import attrs
import click

from ..train.settings_fields import CellName, Choice, Choices, Integer, Kind, Real


class _Integer(click.IntRange):
    """Integers whose range is shown and checked as the field's."""

    name = "integer"

    def __init__(self, kind: Integer) -> None:
        super().__init__(min=kind.minimum)
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._kind.check(click.INT.convert(value, param, ctx), _name(param))


class _Real(click.FloatRange):
    """Numbers whose range is shown and checked as the field's."""

    name = "float"

    def __init__(self, kind: Real) -> None:
        low, high = (float(end) for end in kind.interval[1:-1].split(","))
        least, most = (None if end in (float("-inf"), float("inf")) else end for end in (low, high))
        super().__init__(
            min=least,
            max=most,
            min_open=least is not None and kind.interval[0] == "(",
            max_open=most is not None and kind.interval[-1] == ")",
        )
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._kind.check(click.FLOAT.convert(value, param, ctx), _name(param))


class _Choice(click.Choice):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """Names that are checked as the field's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Choice(tuple(self.choices)).check(value, _name(param))


class CellParameter(click.ParamType):
    """A cell's name; one of a module, in the current folder too, is imported."""

    name = "cell"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        kind = CellName()
        if ":" in value and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        return kind.check(kind.converted(value), _name(param))


def _name(param: click.Parameter | None) -> str:
    return "value" if param is None or param.name is None else param.name


@singledispatch
def _type(kind: Kind) -> click.ParamType:
    """What the command line takes for a field of this kind."""
    return click.STRING


_type.register(Integer)(_Integer)
_type.register(Real)(_Real)


@_type.register(CellName)
def _(kind: CellName) -> click.ParamType:
    return CellParameter()


@_type.register(Choice)
@_type.register(Choices)
def _(kind: Choice | Choices) -> click.ParamType:
    return _Choice(list(kind.known))


def of(settings: type) -> list[click.Parameter]:
    """An option for every field of the attrs class ``settings``, its own before those that it inherits.

    One that is not given is None or (); see :func:`given`.
    """
    return [_option(field) for field in sorted(attrs.fields(settings), key=lambda field: field.inherited)]


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``options`` that were given on the command line."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _option(field: attrs.Attribute[Any]) -> click.Option:
    kind, default = field.metadata["kind"], field.default
    several = isinstance(kind, Choices)
    shown = ", ".join(default) if isinstance(default, tuple) else default
    return click.Option(
        ["--" + field.name.replace("_", "-")],
        type=_type(kind),
        multiple=several,
        metavar=field.metadata["metavar"],
        help=field.metadata["help"] + ("" if default in (None, "") else f" [default: {shown}]"),
    )
