"""Files of series with classes, as tests write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def ts(path: Path, lines: Sequence[str], header: str) -> Path:
    """``path``, now a .ts file of these lines behind a header."""
    path.write_text(header + "\n".join(lines) + "\n")
    return path
