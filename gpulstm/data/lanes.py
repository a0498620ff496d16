"""Batches for truncated backpropagation: documents end to end, cut into lanes that run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .. import checks, parsing
from ..arrays.random import keyed
from .batch import Batch
from .joined import Document, Joined

_BLOCK = 1 << 22  # bytes of all lanes that are gathered at a time


class Lanes:
    """Endless (T, B) batches of bytes and of the bytes that follow them; each continues the lanes of the last one.

    Each epoch shuffles the documents, joins them with ``separator``, starts the ring so made at a random byte
    and cuts it into ``batch`` lanes; the order depends on ``seed`` and the epoch's number alone. The documents are
    read in place, a few million bytes at a time, and ``check`` is called before.

    Raises:
        ValueError: ``batch`` or ``seq_len`` below 1, ``seed`` below 0, or less data than one batch takes.
        TypeError: one of these that is no integer, documents or a separator that are no bytes.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        batch: int,
        seq_len: int,
        *,
        seed: int = 0,
        separator: bytes = b"\0",
        check: Callable[[], None] | None = None,
    ) -> None:
        self.batch = checks.integer(batch, "batch")
        self.seq_len = checks.integer(seq_len, "seq_len")
        self.seed = checks.integer(seed, "seed", 0)
        if not isinstance(separator, bytes):
            raise TypeError(f"separator: expected bytes, got {checks.shown(separator)}")
        self._documents, self._separator = _checked(documents), separator
        self._check = checks.function(check, "check")
        self._size = sum(map(len, self._documents)) + len(self._documents) * len(separator)
        self._length = (self._size - 1) // batch  # of a lane; neighbours share their border bytes
        self.steps_per_epoch = self._length // seq_len
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"data: too short: {self._size} bytes for training; expected more than batch {batch} × "
                f"seq_len {seq_len} = {batch * seq_len}"
            )
        self.epoch = self._window = 0
        self._shuffle()

    def next(self) -> Batch:
        """The next window of every lane; ``fresh`` at the start of an epoch."""
        start = (self._window - self._first) * self.seq_len
        if start + self.seq_len >= self._block.shape[1]:
            self._gather()
            start = 0
        window = self._block[:, start : start + self.seq_len + 1].T.astype(np.int64, order="C")
        batch = Batch({"inputs": window[:-1], "targets": window[1:]}, fresh=self._window == 0)
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
        """Continue at the position of ``state_dict()``.

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
        rng = keyed(self.seed, self.epoch)
        self._ring = Joined(self._documents, self._separator, rng.permutation(len(self._documents)))
        self._start = int(rng.integers(self._size))
        self._first = self._window
        self._block = np.empty((self.batch, 0), np.uint8)

    def _gather(self) -> None:
        """Copy the next windows of all lanes side by side."""
        most = max(1, _BLOCK // (self.batch * self.seq_len))
        count = min(most, self.steps_per_epoch - self._window) * self.seq_len + 1
        at = self._start + self._window * self.seq_len
        self._block = np.empty((self.batch, count), np.uint8)
        for lane, block in enumerate(self._block):
            if self._check is not None:  # each time, since one place of a mapped file may bring 2 MB into memory
                self._check()
            block[:] = self._ring.take(at + lane * self._length, count)
        self._first = self._window


def _checked(documents: Any) -> list[Document]:
    """``documents`` once they are bytes."""
    if not isinstance(documents, Iterable) or isinstance(documents, (str, bytes)):
        raise TypeError(f"documents: expected a list of bytes, got {checks.shown(documents)}")
    documents = list(documents)
    for document in documents:
        if not isinstance(document, (bytes, memoryview)):
            raise TypeError(f"documents: expected bytes in each, got {checks.shown(document)}")
    return documents
