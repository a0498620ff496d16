"""JSON from files that may be damaged or hostile: bounded in size and depth, its fields checked one way everywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

from . import checks

DEPTH = 100  # lists and objects inside each other; what gpulstm and Keras write has some 20 at most
DIGITS = 1000  # of an integer: reading more takes quadratic time
_LARGEST = 2**63 - 1  # what a count may be


def loads(text: str | bytes, most: int = 1 << 24) -> Any:
    """What the JSON ``text`` says.

    Raises:
        ValueError: it is longer than ``most``, is no JSON, nests deeper than :data:`DEPTH`, names a key twice, or holds
            a number that is not finite or has more than :data:`DIGITS` digits.
    """
    if len(text) > most:
        raise ValueError(f"expected JSON of at most {most} bytes, got {len(text)}")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_integer
        )
    except RecursionError:
        raise ValueError(_too_deep()) from None
    except ValueError as error:
        raise ValueError(f"expected JSON, got {error}") from error
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer if isinstance(outer, list) else outer.values())
        ]
        if not level:
            return value
    raise ValueError(_too_deep())


def _too_deep() -> str:
    return f"expected JSON that nests at most {DEPTH} deep, got more"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}, which is not finite")
    return value


def _integer(text: str) -> int:
    if len(text) > DIGITS + 1:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


class Fields:
    """An object in a JSON file, whose fields are taken with a check; errors name a field by its path.

    Raises:
        ValueError, TypeError: from the constructor and every method: a field that is missing or not what was asked for.
    """

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise TypeError(f"{path}: expected an object, got {checks.shown(value)}")
        self.value, self.path = value, path

    def take(self, name: str) -> Any:
        """The field as it is."""
        if name not in self.value:
            raise ValueError(f"{self.path}.{name}: missing; expected it in {checks.shown(sorted(self.value))}")
        return self.value[name]

    def integer(self, name: str, minimum: int = 0) -> int:
        """A whole number of at least ``minimum``, and of 64 bits."""
        value = self.take(name)
        if isinstance(value, int) and value > _LARGEST:
            raise ValueError(f"{self.path}.{name}: expected an integer of 64 bits, got {checks.shown(value)}")
        return checks.integer(value, f"{self.path}.{name}", minimum)

    def real(self, name: str, interval: str = "(-inf, inf)") -> float:
        """A number in ``interval``, as :func:`gpulstm.checks.real` takes it."""
        return checks.real(self.take(name), f"{self.path}.{name}", interval)

    def reals(self, name: str, interval: str = "(-inf, inf)") -> list[float]:
        """A list of numbers in ``interval``, one at least."""
        value = self.take(name)
        if not isinstance(value, list) or not value:
            raise TypeError(f"{self.path}.{name}: expected a list of numbers, got {checks.shown(value)}")
        return [checks.real(number, f"{self.path}.{name}", interval) for number in value]

    def text(self, name: str) -> str:
        """A string."""
        return checks.text(self.take(name), f"{self.path}.{name}")

    def fields(self, name: str, needed: Collection[str] = ()) -> Fields:
        """An object, with the fields ``needed``."""
        inner = Fields(self.take(name), f"{self.path}.{name}")
        for key in needed:
            inner.take(key)
        return inner
