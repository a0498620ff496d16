"""Files of text for tests."""

from __future__ import annotations

from pathlib import Path

PROSE = "The quick brown fox jumps over the lazy dog; größer, schöner, weiter. Ĵaŭdo → 中文.\n"


def fill(root: Path, count: int, size: int = 400) -> None:
    for number in range(count):
        path = root / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((f"{number} " + PROSE * 20).encode()[:size])
