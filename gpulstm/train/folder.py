"""The folder that a run writes checkpoints and metrics to: locked for that run, and made again if it is removed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..files import FolderLock
from . import checkpoint
from .metrics import Log

logger = logging.getLogger("gpulstm")


class RunFolder:
    """The folder ``path`` of checkpoints and metrics.

    What a method is given as ``save`` writes the checkpoint of the present step and returns its path.

    Args:
        path: where it is, or will be.
        metrics: formats, see :func:`gpulstm.train.metrics.writers`.
        lock: on ``path``, where the caller holds it already.
    """

    def __init__(self, path: Path, metrics: Sequence[str], lock: FolderLock | None) -> None:
        self.path = path
        self.saved: int | None = None
        """The step of the last checkpoint that was written, or that the run was resumed from."""
        self._metrics, self._lock = metrics, lock

    def resumed(self, step: int) -> None:
        """The run continues from the checkpoint of ``step``."""
        self.saved = step

    @contextmanager
    def held(self) -> Iterator[None]:
        """In the block no other run writes to the folder."""
        if self._lock is not None:
            yield
            return
        with FolderLock(self.path) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def save(self, step: int, save: Callable[[], Path]) -> Path:
        """Write the checkpoint of ``step``, the present one."""
        with self.held():
            path = save()
        self.saved = step
        return path

    def save_with(self, log: Log, step: int, save: Callable[[], Path]) -> None:
        """A checkpoint of ``step``, unless there is one; the metrics up to it are on the disk before it is."""
        self.recreate_if_removed(log, step, save)
        if self.saved != step:
            log.flush()
            self.save(step, save)

    def open(self, log: Log, step: int, save: Callable[[], Path]) -> None:
        """Prepare the folder: remove what a killed run left, save the first state, and open the metrics.

        With a first checkpoint --resume works from here on, and a full disk shows at once.
        """
        checkpoint.clear(self.path)
        if self.saved is None:
            self.save(step, save)
        log.open(self._metrics, step)

    def recreate_if_removed(self, log: Log, step: int, save: Callable[[], Path]) -> None:
        """If the folder was removed since, make it again and log that: what is written to it would be lost."""
        if self._lock is None or not self._lock.lost():
            return
        self._lock.take()
        log.open(self._metrics, step)
        if self.saved is None or not checkpoint.path_of(self.path, self.saved).is_dir():  # more is gone than the lock
            self.save(step, save)
            logger.warning(
                "%s was removed or renamed while training: it was made anew at step %d, without what was in it",
                self.path,
                step,
            )
