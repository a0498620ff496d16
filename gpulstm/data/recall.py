"""Associative recall: pairs of a key and a value, then one of the keys again; the answer is its value.

Sequences are drawn from a seed, those for training anew at every step. As text a sequence is ``a=3 b=5 c=3 b?``.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks, parsing
from ..arrays.random import keyed
from .batch import Batch

KEYS = string.ascii_letters + "βγδζθλξπσφψω"
VALUES = "01234567"
TOKENS = KEYS + VALUES
"""All symbols; an id is a place in it."""
EPOCH = 100
"""Batches that are called an epoch: there is no pass over sequences that never end."""
_STREAMS = {"training": 0, "validation": 1, "test": 2}
_HELD_OUT = {"validation": 1024, "test": 4096}


@dataclass(frozen=True)
class Sequences:
    """Sequences of N pairs and a query: ``tokens`` (2N + 1, B) ids, the pair ``asked`` for (B,), ``answers`` (B,)."""

    tokens: np.ndarray
    asked: np.ndarray
    answers: np.ndarray

    def text(self, number: int) -> str:
        """One of them as text."""
        symbols = [TOKENS[code] for code in self.tokens[:, number]]
        pairs = zip(symbols[:-1:2], symbols[1::2], strict=True)
        return " ".join([f"{key}={value}" for key, value in pairs] + [f"{symbols[-1]}?"])


def drawn(seed: int, stream: str, number: int, batch: int, pairs: int) -> Sequences:
    """``batch`` sequences, number ``number`` of a stream: every key of a sequence is another, values are independent.

    Streams share no random numbers: what is held out is drawn from another than what is learnt.
    """
    rng = keyed(seed, _STREAMS[stream], number)
    keys = np.argsort(rng.random((batch, len(KEYS))), axis=1)[:, :pairs]
    values = rng.integers(len(VALUES), size=(batch, pairs))
    asked = rng.integers(pairs, size=batch)
    rows = np.arange(batch)
    tokens = np.empty((2 * pairs + 1, batch), np.int64)
    tokens[:-1:2], tokens[1::2], tokens[-1] = keys.T, len(KEYS) + values.T, keys[rows, asked]
    return Sequences(tokens, asked, values[rows, asked])


class Drawn:
    """Endless batches of sequences (2N + 1, B) and of their answers (B,); each follows from the seed and its number."""

    steps_per_epoch = EPOCH

    def __init__(self, seed: int, batch: int, pairs: int) -> None:
        self.seed, self.batch, self.pairs = seed, batch, pairs
        self._number = 0

    @property
    def epoch(self) -> int:
        return self._number // EPOCH

    def next(self) -> Batch:
        sequences = drawn(self.seed, "training", self._number, self.batch, self.pairs)
        self._number += 1
        return Batch({"inputs": sequences.tokens, "targets": sequences.answers})

    def state_dict(self) -> dict[str, Any]:
        """The position, with what it is a position in; JSON holds it."""
        return {"number": self._number, "seed": self.seed, "batch": self.batch, "pairs": self.pairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state_dict()``.

        Raises:
            ValueError, TypeError: it is a position in other sequences, or none.
        """
        position = parsing.Fields(state, "state")
        for name, value in self.state_dict().items():
            if name != "number" and position.take(name) != value:
                raise ValueError(f"data position: made for {name} {checks.shown(state[name])}, expected {value}")
        self._number = position.integer("number")


@dataclass(frozen=True)
class HeldOut:
    """What is never trained on: one part for validation, one that is looked at once."""

    pairs: int
    seed: int
    validation: Sequences
    test: Sequences

    @property
    def source(self) -> str:
        return f"drawn from seed {self.seed} (synthetic)"

    @property
    def digest(self) -> str:
        """SHA-256 of all tokens that are held out; an answer follows from those."""
        found = hashlib.sha256()
        for part in (self.validation, self.test):
            found.update(np.ascontiguousarray(part.tokens, "<i8").tobytes())
        return found.hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def describe(self) -> str:
        sizes = " and ".join(f"{part.answers.size:,}" for part in (self.validation, self.test))
        return (
            f"{self.pairs} pairs of {len(KEYS)} keys and {len(VALUES)} values, then a key; {self.source}, "
            f"{sizes} sequences held out to validate and to test"
        )


def held_out(seed: int, pairs: int) -> HeldOut:
    """The sequences that a model of ``pairs`` is measured on."""
    validation, test = (drawn(seed, stream, 0, count, pairs) for stream, count in _HELD_OUT.items())
    return HeldOut(pairs, seed, validation, test)


def parsed(text: str) -> np.ndarray:
    """The tokens (2N + 1, 1) of a sequence as text.

    Raises:
        ValueError: it is none; the message names the part.
    """
    *pairs, query = text.split() or [""]
    told: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if len(key) != 1 or key not in KEYS or len(value) != 1 or value not in VALUES:
            expected = f"a pair such as 'a=3', of a key among {KEYS} and a value of 0 to {VALUES[-1]}"
            raise ValueError(f"text: expected {expected}, got {checks.shown(pair)}")
        if key in told:
            raise ValueError(f"text: expected every key once, got {key!r} twice")
        told[key] = value
    if len(query) != 2 or query[1] != "?" or query[0] not in told:
        raise ValueError(
            f"text: expected pairs, then a query for one of their keys, such as 'a=3 b=5 a?', got {checks.shown(query)}"
        )
    symbols = [*(symbol for pair in told.items() for symbol in pair), query[0]]
    return np.array([[TOKENS.index(symbol)] for symbol in symbols], np.int64)
