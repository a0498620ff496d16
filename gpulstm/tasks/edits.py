"""How far what was said is from what should have been: edits, and rates of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def distance(given: Sequence[Any], right: Sequence[Any]) -> int:
    """The fewest insertions, deletions and replacements that make ``right`` of ``given``.

    A row of the table at a time: Levenshtein 1966; Wagner and Fischer 1974, algorithm X.
    """
    before = list(range(len(right) + 1))
    for i, own in enumerate(given, 1):
        row = [i]
        for j, other in enumerate(right, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + bool(own != other)))
        before = row
    return before[-1]


def rates(pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Of pairs of what was said and what is right: edits over the length of all that is right, and the share of exact
    ones: {"error_rate": ..., "exact": ...}."""
    edits, sizes = zip(*((distance(given, right), len(right)) for given, right in pairs), strict=True)
    return {"error_rate": sum(edits) / max(1, sum(sizes)), "exact": float(np.mean(np.equal(edits, 0)))}
