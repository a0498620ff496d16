"""Batches for truncated backpropagation: documents end to end, cut into lanes that run side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks, parsing


@dataclass(frozen=True)
class Batch:
    """One training step's data, time-major: ``inputs`` and ``targets`` (T, B, ...).

    ``fresh`` says that new sequences begin, so that no state is carried into them; ``lengths`` (B,) or None.
    """

    inputs: np.ndarray
    targets: np.ndarray
    fresh: bool = True
    lengths: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """Steps of all sequences together."""
        return int(self.inputs.shape[0] * self.inputs.shape[1] if self.lengths is None else self.lengths.sum())


class Lanes:
    """Endless (T, B) batches of bytes and of the bytes that follow them, lane b going on where it stopped.

    Each epoch shuffles the documents, joins them with ``separator``, starts the ring so made at a random byte
    and cuts it into ``batch`` lanes; the order depends on ``seed`` and the epoch's number alone.

    Raises:
        ValueError: ``batch`` or ``seq_len`` below 1, ``seed`` below 0, or less data than one batch takes.
        TypeError: one of these that is no integer, documents or a separator that are no bytes.
    """

    def __init__(
        self, documents: Sequence[bytes], batch: int, seq_len: int, *, seed: int = 0, separator: bytes = b"\0"
    ) -> None:
        self.batch = checks.integer(batch, "batch")
        self.seq_len = checks.integer(seq_len, "seq_len")
        self.seed = checks.integer(seed, "seed", 0)
        if not isinstance(separator, bytes):
            raise TypeError(f"separator: expected bytes, got {checks.shown(separator)}")
        self._documents = [np.frombuffer(document + separator, np.uint8) for document in _checked(documents)]
        self._size = sum(map(len, self._documents))
        self.steps_per_epoch = (self._size - 1) // batch // seq_len
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"data: too short: {self._size} bytes for training; expected more than batch {batch} × "
                f"seq_len {seq_len} = {batch * seq_len}"
            )
        self.epoch = self._window = 0
        self._shuffle()

    def next(self) -> Batch:
        """The next window of every lane; ``fresh`` at the start of an epoch."""
        start = self._window * self.seq_len
        window = self._lanes[:, start : start + self.seq_len + 1].T.astype(np.int64, order="C")
        batch = Batch(window[:-1], window[1:], fresh=self._window == 0)
        self._window += 1
        if self._window == self.steps_per_epoch:
            self.epoch, self._window = self.epoch + 1, 0
            self._shuffle()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, with what it is a position in; JSON holds it."""
        return {
            "epoch": self.epoch,
            "window": self._window,
            "bytes": self._size,
            "batch": self.batch,
            "seq_len": self.seq_len,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the position of ``state_dict()``.

        Raises:
            ValueError, TypeError: it is a position in other data, in lanes of another size, order or number, beyond
                their end, or none.
        """
        position = parsing.Fields(state, "state")
        for name, value in self.state_dict().items():
            if name not in ("epoch", "window") and position.take(name) != value:
                raise ValueError(f"data position: made for {name} {checks.shown(state[name])}, expected {value}")
        epoch, window = position.integer("epoch"), position.integer("window")
        if window >= self.steps_per_epoch:
            raise ValueError(f"state.window: expected less than {self.steps_per_epoch}, got {window}")
        self.epoch, self._window = epoch, window
        self._shuffle()

    def _shuffle(self) -> None:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self._documents))
        ring = np.concatenate([self._documents[i] for i in order])
        ring = np.roll(ring, -int(rng.integers(self._size)))
        length = (self._size - 1) // self.batch
        starts = range(0, self.batch * length, length)
        self._lanes = np.stack([ring[at : at + length + 1] for at in starts])  # they share their border bytes


def _checked(documents: Any) -> list[bytes]:
    """``documents`` once they are bytes."""
    if not isinstance(documents, Iterable) or isinstance(documents, (str, bytes)):
        raise TypeError(f"documents: expected a list of bytes, got {checks.shown(documents)}")
    documents = list(documents)
    for document in documents:
        if not isinstance(document, bytes):
            raise TypeError(f"documents: expected bytes in each, got {checks.shown(document)}")
    return documents
