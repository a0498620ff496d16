"""The folder that a run writes to: held by it alone, looked after while it trains, filled with checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..files import FolderLock
from . import checkpoint
from .progress import Log

logger = logging.getLogger("gpulstm")


class RunFolder:
    """The folder ``path`` of checkpoints and metrics.

    Args:
        path: where it is, or will be.
        save: writes the checkpoint of the present step and returns its path.
        metrics: formats, see :func:`gpulstm.train.progress.writers`.
        lock: on ``path``, where the caller holds it already.
    """

    def __init__(self, path: Path, save: Callable[[], Path], metrics: Sequence[str], lock: FolderLock | None) -> None:
        self.path = path
        self.saved: int | None = None
        """The step of the last checkpoint that was written or read."""
        self._save, self._metrics, self._lock = save, metrics, lock

    @contextmanager
    def held(self) -> Iterator[None]:
        """In the block nobody else writes to the folder."""
        if self._lock is not None:
            yield
            return
        with FolderLock(self.path) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def save(self, step: int) -> Path:
        """Write the checkpoint of ``step``, the present one."""
        with self.held():
            path = self._save()
        self.saved = step
        return path

    def save_with(self, log: Log, step: int) -> None:
        """A checkpoint of ``step``, unless there is one; the metrics up to it are on the disk before it is."""
        self.look_after(log, step)
        if self.saved != step:
            log.flush()
            self.save(step)

    def open(self, log: Log, step: int) -> None:
        """Remove what a killed run left and save the first state, so that --resume works from here on and a full disk
        shows at once; then go on with the metrics."""
        checkpoint.clear(self.path)
        if self.saved is None:
            self.save(step)
        log.open(self._metrics, step)

    def look_after(self, log: Log, step: int) -> None:
        """Make the folder anew, and say so, if it was removed since: what is written to it would be lost."""
        if self._lock is None or not self._lock.lost():
            return
        self._lock.take()
        log.open(self._metrics, step)
        if self.saved is None or not checkpoint.path_of(self.path, self.saved).is_dir():  # more is gone than the lock
            self.save(step)
            logger.warning(
                "%s was removed or renamed while training: it was made anew at step %d, without what was in it",
                self.path,
                step,
            )
