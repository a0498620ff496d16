"""Sentences in sound files with their texts, in three parts; sentences of one text are in one part.

A folder has files ``*.trans.txt`` as LibriSpeech has them: a line is the name of a sound file beside it, without its
end, and its text. A TSV file has a path, from the folder that it is in, and a text in each line.
"""

from __future__ import annotations

import gzip
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from .. import checks
from . import packages
from .audio import read_wav, steps
from .speech_features import scale, scaled
from .utterances import Bucketed, Utterance

PROMPTS = "prompts"  # in packages.PACKAGES
TRANSCRIPTS = "*.trans.txt"
_SHARES = {"test": 0.12, "validation": 0.05}
_RULE = f"sentences 1 {_SHARES}"  # of the split, for the digest


@dataclass(frozen=True)
class Sentence:
    """A sound file as steps (T, F) float32, its text once it is :func:`spelt`, its name, and its samples' SHA-256."""

    values: np.ndarray
    text: str
    file: str
    key: bytes


@dataclass(frozen=True)
class Sentences:
    """The parts of a set of sentences; symbols, ``mean`` and ``deviation`` (F,) are those of the training part."""

    source: str
    train: tuple[Sentence, ...]
    validation: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    rate: int
    digest: str
    notes: tuple[str, ...] = ()
    symbols: tuple[str, ...] = field(init=False)
    mean: np.ndarray = field(init=False)
    deviation: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        mean, deviation = scale([sentence.values for sentence in self.train])
        found = {"symbols": tuple(sorted(set("".join(sentence.text for sentence in self.train))))}
        for name, value in {**found, "mean": mean, "deviation": deviation}.items():
            object.__setattr__(self, name, value)

    def describe(self) -> str:
        """One line for people."""
        sizes = f"{len(self.train)} to train on, {len(self.validation)} to validate with, {len(self.test)} to test"
        line = f"{self.source}: sentences of {len(self.symbols)} characters at {self.rate} Hz, {sizes}"
        return "; ".join((line, *self.notes))

    def batches(self, batch: int, seed: int, noise: float) -> Bucketed:
        """Of the training part."""
        return _Batches(self._utterances(self.train), batch, seed, noise)

    def validation_utterances(self) -> list[Utterance]:
        return self._utterances(self.validation)

    def test_utterances(self) -> dict[str, list[Utterance]]:
        return {"": self._utterances(self.test)}

    def _utterances(self, part: Sequence[Sentence]) -> list[Utterance]:
        return [utterance(each.values, each.text, self.symbols, self.mean, self.deviation) for each in part]


def utterance(
    values: np.ndarray, text: str, symbols: Sequence[str], mean: np.ndarray, deviation: np.ndarray
) -> Utterance:
    """``values`` scaled, and the labels of those characters of ``text`` that are among ``symbols``."""
    labels = [1 + symbols.index(character) for character in text if character in symbols]
    return Utterance(scaled(values, mean, deviation), np.array(labels, np.int64), text)


class _Batches(Bucketed):
    def __init__(self, utterances: list[Utterance], batch: int, seed: int, noise: float) -> None:
        self._utterances = utterances
        super().__init__(len(utterances), len(utterances), batch, seed, noise)

    def _planned(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        order = rng.permutation(len(self._utterances)).tolist()
        return [(len(self._utterances[number].values), number) for number in order]

    def _utterance(self, of: int, rng: np.random.Generator) -> Utterance:
        return self._utterances[of]


def read(data: str | Path, progress: Callable[[int, int], None] | None = None) -> Sentences:
    """The sentences in ``data``, in three parts: of all texts those of the smallest SHA-256 are the test part.

    ``data`` is a folder or a TSV file as above, or ``"prompts"``, those of the package of that name.

    Args:
        progress: is told how many bytes of how many were downloaded, then read.

    Raises:
        ValueError: no sentences, a line without a text, a sound file that is not there or is none, files of different
            rates, or too few texts; the message names file and line.
        OSError: a file cannot be read.
    """
    if data == PROMPTS:
        source, listed = packages.PACKAGES[PROMPTS].source, _prompts(packages.get(PROMPTS, progress))
    else:
        source, listed = str(data), _listed(checks.path(data, "data"))
    found, rate, left_out = _read(listed, progress)
    by_text: dict[str, list[Sentence]] = defaultdict(list)
    digest = hashlib.sha256(_RULE.encode())
    for sentence in found:
        by_text[sentence.text].append(sentence)
        digest.update(sentence.text.encode() + b"\0" + sentence.key)
    texts = sorted(by_text, key=lambda text: hashlib.sha256(text.encode()).digest())
    tested, validated = (round(_SHARES[part] * len(texts)) for part in ("test", "validation"))
    if not validated:
        raise ValueError(f"data: {data}: expected at least 20 different texts, got {len(texts)}")
    cut = (texts[tested + validated :], texts[tested:][:validated], texts[:tested])
    train, validation, test = (tuple(sentence for text in part for sentence in by_text[text]) for part in cut)
    notes = (f"{left_out} whose text is longer than their sound left out",) if left_out else ()
    return Sentences(source, train, validation, test, rate, digest.hexdigest(), notes)


def sentences(data: Path, rate: int) -> list[Sentence]:
    """All sentences of a folder or a TSV file, or a sound file with no text; for a model of ``rate`` samples a second.

    Raises:
        ValueError: as :func:`read`, or files of another rate.
        OSError: a file cannot be read.
    """
    if data.suffix.lower() == ".wav":
        samples, own = read_wav(data)
        found = [_sentence(samples, own, "", data)]
    else:
        found, own, _ = _read(_listed(data), fitting=False)
    if own != rate:
        raise ValueError(f"data: {data}: expected {rate} samples a second, as the model was trained on, got {own}")
    return found


Listed = list[tuple[str, Path, str]]  # of each sentence where it is listed, its sound file, and its text


def _read(
    listed: Listed, progress: Callable[[int, int], None] | None = None, *, fitting: bool = True
) -> tuple[list[Sentence], int, int]:
    """The sentences, the samples a second of their files, and how many were left out, if all must be ``fitting``: those
    whose text is longer than their sound, which have no CTC loss."""
    found, left_out = [], 0
    rates: dict[int, Path] = {}
    sizes = [file.stat().st_size if file.is_file() else 0 for _, file, _ in listed]
    ends = list(accumulate(sizes))
    for done, (where, file, text) in zip(ends, listed, strict=True):
        if not (text := spelt(text)):
            raise ValueError(f"{where}: expected a sound file and its text, got no text")
        if not file.is_file():
            raise ValueError(f"{where}: the sound file {file} is not there")
        samples, rate = read_wav(file)
        rates.setdefault(rate, file)
        if len(rates) > 1:
            first, other = rates.items()
            raise ValueError(f"data: expected files of one rate, got {first[0]} Hz in {first[1]} and {other[0]} Hz in "
                             f"{other[1]}")  # fmt: skip
        sentence = _sentence(samples, rate, text, file)
        repeats = sum(a == b for a, b in pairwise(text))
        if fitting and len(text) + repeats > len(sentence.values):
            left_out += 1
        else:
            found.append(sentence)
        if progress is not None:
            progress(done, ends[-1])
    if not found:
        raise ValueError(f"data: expected a sentence at least, got {left_out}, all with more text than sound")
    return found, next(iter(rates)), left_out


def _sentence(samples: np.ndarray, rate: int, text: str, file: Path) -> Sentence:
    key = hashlib.sha256(f"{rate} ".encode() + samples.astype("<f4").tobytes()).digest()
    return Sentence(steps(samples, rate), text, str(file), key)


def spelt(text: str) -> str:
    """``text`` as it is learnt: small letters, digits and apostrophes, a space between words."""
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text.lower().replace("’", "'")).split())


def _listed(data: Path) -> Listed:
    """What a folder or a TSV file lists."""
    lists = sorted(data.rglob(TRANSCRIPTS)) if data.is_dir() else [data]
    found = []
    for file in lists:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected UTF-8: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name, separator, text = line.partition(" " if data.is_dir() else "\t")
            if not separator or not name:
                raise ValueError(f"{file}, line {number}: expected a sound file and its text, got {checks.shown(line)}")
            sound = file.parent / (f"{name}.wav" if data.is_dir() else name)
            found.append((f"{file}, line {number}", sound, text))
    if not found:
        raise ValueError(f"data: {data}: expected files {TRANSCRIPTS} with sentences, or a TSV file, got none")
    return found


def _prompts(folder: Path) -> Listed:
    """The prompts of a telephone exchange: ``key: text`` in each line; in brackets are sounds, not speech."""
    file = folder / "core-sounds-en.txt.gz"
    found = []
    for number, line in enumerate(gzip.decompress(file.read_bytes()).decode("utf-8").splitlines(), 1):
        key, _, text = line.partition(":")
        sound = folder / f"{key.strip()}.wav"
        if not line.startswith(";") and spelt(text) and "[" not in text and sound.is_file():
            found.append((f"{file}, line {number}", sound, text))
    return found
