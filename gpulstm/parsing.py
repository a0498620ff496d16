"""JSON from files that nobody vouches for: bounded in size and depth, and its fields checked one way everywhere."""

from __future__ import annotations

import json
import math
from typing import Any

DEPTH = 100  # lists and objects inside each other; what gpulstm and Keras write has some 20 at most
DIGITS = 1000  # of an integer: reading more takes quadratic time
LARGEST = 2**63  # what a count in a file may be at most


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
