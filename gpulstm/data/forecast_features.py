"""What a forecast sees of a series: features, with the statistics and words of the training part alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import checks, parsing
from .series import Series

DAY, WEEK = 86400, 7 * 86400  # seconds
_SKEWED = 1.0  # skewness of a column that is never below 0, from which on its logarithm is looked at
_OFFSETS = (
    0.3,
    0.03,
)  # of the mean of such a column, added before: of the target, and of others, of which less is known
_BEYOND = 1.0  # in standard deviations, how far above all training a forecast on the scale of logarithms may go
_RARE = 0.01  # deviation of a feature at least, so that what is rare in training is not large elsewhere
_GAPS = 0.001  # share of missing values in training from which on they have a feature of their own
_LEAST = 1e-6  # standard deviation of a column that is not constant
_PHASES = 168  # of a week of hours
_LARGEST = 1 << 16  # what a history or lag in a checkpoint may be


@dataclass(frozen=True)
class Scale:
    """How a column of numbers becomes a feature: its logarithm after ``offset`` is added, or itself where that is None,
    less ``mean``, divided by ``deviation``; ``most`` is the largest of training.
    """

    offset: float | None
    mean: float
    deviation: float
    most: float

    @classmethod
    def of(cls, values: np.ndarray, share: float = _OFFSETS[0]) -> Scale:
        """That of the ``values`` of training, of which missing ones do not count; ``share`` of the mean is offset."""
        known = values[~np.isnan(values)]
        if not len(known):
            return cls(None, 0.0, 1.0, 0.0)
        offset = None
        centred, spread = known - known.mean(), max(float(known.std()), _LEAST)
        if known.min() >= 0 and np.mean((centred / spread) ** 3) > _SKEWED:
            offset = float(share * known.mean())
        if offset is not None:
            known = np.log(known + offset)
        deviation = float(known.std())
        deviation = deviation if deviation > _LEAST else 1.0
        mean = float(known.mean())
        return cls(offset, mean, deviation, float((known.max() - mean) / deviation))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """``values`` as a feature."""
        if self.offset is not None:
            values = np.log(np.maximum(values, 0) + self.offset)
        return (values - self.mean) / self.deviation

    def invert(self, values: np.ndarray) -> np.ndarray:
        """What :meth:`apply` made ``values`` of; of a forecast, whose exponential may be beyond all sense, cut."""
        if self.offset is None:
            return values * self.deviation + self.mean
        values = np.minimum(values, self.most + _BEYOND)
        return np.maximum(np.exp(values * self.deviation + self.mean) - self.offset, 0)


@dataclass(frozen=True)
class Plan:
    """What is made of a series, all of it known from the training part; JSON holds it.

    ``delay`` is after how many steps the other columns are known, ``lag`` how many steps before those of the horizon
    the target is looked at besides (0 for not at all). ``words`` are the values of columns of words with their shares,
    ``gaps`` the columns with a feature that says where they are missing.
    """

    target: str
    step: int
    history: int
    horizon: int
    delay: int
    lag: int
    numbers: dict[str, Scale]
    words: dict[str, dict[str, float]]
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, series: Series, training: int, history: int, horizon: int, delay: int = 0, lag: int = 0) -> Plan:
        """The plan for ``series``, whose first ``training`` steps are looked at.

        Raises:
            ValueError: the target has no value there, or ``lag`` is not 0 and below ``horizon``.
        """
        if 0 < lag < horizon:
            raise ValueError(f"lag: expected 0 or at least the horizon, {horizon}, got {lag}")
        parts = {name: values[:training] for name, values in series.columns.items()}
        if np.isnan(parts[series.target]).all():
            raise ValueError(f"target: {series.target!r} has no value in the first {training} steps, for training")
        numbers = {
            name: Scale.of(values, _OFFSETS[name != series.target])
            for name, values in parts.items()
            if values.dtype != object
        }
        words = {
            name: {word: float(np.mean(values == word)) for word in sorted(set(values) - {""})}
            for name, values in parts.items()
            if values.dtype == object
        }
        gaps = tuple(name for name in numbers if np.isnan(parts[name]).mean() > _GAPS)
        return cls(series.target, series.step, history, horizon, delay, lag, numbers, words, gaps)

    @classmethod
    def parsed(cls, stored: parsing.Fields) -> Plan:
        """The plan that :meth:`as_json` gave.

        Raises:
            ValueError, TypeError: it is none; the message names the field.
        """
        numbers, words = stored.fields("numbers"), stored.fields("words")
        scales = {}
        for name in numbers.value:
            one = numbers.fields(name)
            offset = None if one.take("offset") is None else one.real("offset", "[0, inf)")
            scales[name] = Scale(offset, one.real("mean"), one.real("deviation", "(0, inf)"), one.real("most"))
        sizes = {name: stored.integer(name, least) for name, least in (("delay", 0), ("lag", 0), ("history", 1))}
        for name, value in sizes.items():
            if value > _LARGEST:
                raise ValueError(f"{stored.path}.{name}: expected at most {_LARGEST}, got {value}")
        plan = cls(
            target=stored.text("target"),
            step=stored.integer("step", 1),
            horizon=stored.integer("horizon", 1),
            numbers=scales,
            words={name: _shares(words.fields(name)) for name in words.value},
            gaps=tuple(checks.texts(stored.take("gaps"), f"{stored.path}.gaps")),
            **sizes,
        )
        for name in (plan.target, *plan.gaps):
            if name not in scales:
                raise ValueError(f"{stored.path}.numbers.{name}: missing; expected the scale of a column that is used")
        return plan

    def as_json(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return asdict(self)

    @property
    def needed(self) -> int:
        """How many steps a forecast looks back at."""
        return max(self.history + max(self.delay, self.lag - self.horizon), self.lag)

    @property
    def seen(self) -> int:
        """How many of the features are known at a step; those after them are known ``horizon`` steps before."""
        return len(self.numbers) + sum(map(len, self.words.values())) + len(self.gaps)

    @property
    def count(self) -> int:
        """How many features there are, F."""
        phases = 1 + (self.step <= DAY) + (self.step < DAY)  # each a sine and a cosine, now and later
        return self.seen + 4 * phases + 7 * (self.step <= DAY) + (self.lag > 0)

    def features(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """The features (N, F) float64 of every step of ``series``, and its target (N,) scaled, gaps filled forward.

        The first feature is the target's, then come other numbers, words and gaps; then what is known beforehand: the
        calendar of the step and of that ``horizon`` later, and the target ``lag`` steps before the latter.

        Raises:
            ValueError: a column is missing, or holds words in the place of numbers or the reverse; another step.
        """
        if series.step != self.step:
            raise ValueError(f"data: expected times {self.step} s apart, as in training, got {series.step} s")
        made = []
        for name in (*self.numbers, *self.words):
            values = series.columns.get(name)
            if values is None:
                raise ValueError(f"data: has no column {name!r}, expected it as in training")
            if name in self.words and values.dtype != object and np.isnan(values).all():
                values = np.full(len(values), "", object)  # without a value it is either
            if (values.dtype == object) != (name in self.words):
                expected, found = ("words", "numbers") if name in self.words else ("numbers", "words")
                raise ValueError(f"data: column {name!r}: expected {expected}, as in training, got {found}")
            values = self._delayed(name, values)
            if name in self.numbers:
                made.append(filled(self.numbers[name].apply(values)))
            else:
                made += [_standard(values == word, share) for word, share in self.words[name].items()]
        made += [np.isnan(self._delayed(name, series.columns[name])).astype(np.float64) for name in self.gaps]
        later = series.times + np.timedelta64(self.horizon * self.step, "s")
        made += [*calendar(series.times, self.step), *calendar(later, self.step), *weekdays(later, self.step)]
        target = made[0]
        if self.lag:
            before = self.lag - self.horizon
            made.append(np.concatenate([np.zeros(min(before, len(target))), target[: max(0, len(target) - before)]]))
        return np.stack(made, axis=1), target

    def _delayed(self, name: str, values: np.ndarray) -> np.ndarray:
        """``values`` when they are known: those of other columns than the target ``delay`` steps later."""
        if name == self.target or not self.delay:
            return values
        before = np.full(min(self.delay, len(values)), "" if values.dtype == object else math.nan, values.dtype)
        return np.concatenate([before, values[: max(0, len(values) - self.delay)]])


def phase(times: np.ndarray, step: int) -> tuple[np.ndarray, int]:
    """Which step of a week each of ``times`` (N,) is, of a day where a week has too many, and how many there are."""
    for period in (WEEK, DAY):
        count, rest = divmod(period, step)
        if not rest and count <= _PHASES:
            return times.astype("datetime64[s]").astype(np.int64) // step % count, count
    return np.zeros(len(times), np.int64), 1


def _standard(found: np.ndarray, share: float) -> np.ndarray:
    """Whether something was found, (N,), scaled to mean 0 and deviation 1 for this ``share`` of all."""
    return (found - share) / max(math.sqrt(share * (1 - share)), _RARE)


def _shares(stored: parsing.Fields) -> dict[str, float]:
    return {word: stored.real(word, "[0, 1]") for word in stored.value}


def filled(values: np.ndarray) -> np.ndarray:
    """A feature with each NaN replaced by the value before; at the beginning by 0, the mean."""
    at = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(len(values))))
    return np.where(at < 0, 0.0, values[np.maximum(at, 0)])


def calendar(times: np.ndarray, step: int) -> list[np.ndarray]:
    """Sine and cosine of the hour, weekday and month of ``times``, of those that a series of this ``step`` has."""
    days = times.astype("datetime64[D]")
    phases = [times.astype("datetime64[M]").astype(np.int64) % 12 / 12]
    if step <= DAY:
        phases.append((days.astype(np.int64) + 3) % 7 / 7)
    if step < DAY:
        phases.append((times - days).astype("timedelta64[s]").astype(np.int64) / DAY)
    return [wave(2 * np.pi * phase) for phase in phases for wave in (np.sin, np.cos)]


def weekdays(times: np.ndarray, step: int) -> list[np.ndarray]:
    """One feature a day of the week, Monday first: 1 on that day; none for a ``step`` of more than a day."""
    day = (times.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return [(day == number).astype(np.float64) for number in range(7)] if step <= DAY else []


def season(step: int) -> int:
    """After how many steps a series is expected to repeat: a day, for days a week, for weeks a year."""
    if step < DAY:
        return max(1, round(DAY / step))
    return {DAY: 7, WEEK: 52}.get(step, 1)
