"""Small recordings of digits for tests, of the form that the speech task reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

COLUMNS = 3


def made(seed: int = 0, count: int = 160) -> dict[str, np.ndarray]:
    """Recordings of digits that are easily told apart: a column of energy, and two that say which digit it is."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(10, size=count)
    lengths = rng.integers(4, 9, size=count)
    angle = np.repeat(2 * np.pi * digits / 10, lengths)
    x = np.stack([np.full(len(angle), 5.0), np.cos(angle), np.sin(angle)], axis=1)
    x += 0.05 * rng.standard_normal(x.shape)
    x[np.cumsum(lengths) - 1, 0] = -5  # each ends quietly
    return {"X": x.astype(np.float32), "y": digits, "lengths": lengths}


def written(folder: Path) -> Path:
    """A file of such recordings in ``folder``."""
    path = folder / "digits.npz"
    np.savez(path, **made())  # type: ignore[arg-type]
    return path
