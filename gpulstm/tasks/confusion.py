"""Confusion matrices: which class was taken for which, as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_WIDEST = 20  # classes that a matrix on a terminal may have
_WORST = 10  # pairs that are listed in its place
_NAME = 16  # characters of a class's name that are shown


def matrix(truth: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """How many of each class (rows) were taken for each (columns): (K, K), from numbers of classes (N,)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth, answers), 1)
    return counts


def text(counts: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix for people; of many classes the pairs that are confused most often."""
    short = [_short(name) for name in names]
    if len(names) > _WIDEST:
        wrong = counts - np.diag(np.diag(counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:_WORST]
        pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, counts.shape), strict=True)]
        confused = [(i, j) for i, j in pairs if wrong[i, j]]
        lines = [f"{short[i]} taken for {short[j]}: {counts[i, j]} of {counts[i].sum()}" for i, j in confused]
        return "\n".join(lines or ["no class was taken for another"])
    left = max(map(len, short))
    widths = [max(len(name), len(str(column.max()))) for name, column in zip(short, counts.T, strict=True)]
    rows = [" ".join([" " * left, *(f"{name:>{width}}" for name, width in zip(short, widths, strict=True))])]
    for name, row in zip(short, counts, strict=True):
        cells = (f"{count or '.':>{width}}" for count, width in zip(row, widths, strict=True))
        rows.append(" ".join([f"{name:<{left}}", *cells]))
    return "\n".join(["rows are what it is, columns what it was taken for", *rows])


def draw(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix as a picture in ``path``; the shade of a field is its share of its row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = min(12.0, 2.5 + 0.4 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    short = [_short(name) for name in names]
    axes.set_xticks(ticks, short, rotation=90)
    axes.set_yticks(ticks, short)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    if len(names) <= _WIDEST:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                dark = shares[row, column] > 0.5
                axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    FigureCanvasAgg(figure).print_png(path)


def _short(name: str) -> str:
    """A name as it is shown: cut where it is long, without what a terminal would obey."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
