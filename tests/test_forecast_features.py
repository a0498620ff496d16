"""Features of series, their split by time, and batches of windows: nothing of what comes later is seen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gpulstm import parsing
from gpulstm.data.forecast_features import Plan, Scale, filled, phase, season
from gpulstm.data.series import Series
from gpulstm.data.windows import Parts, Windows, futures, histories

N, TRAINING = 400, 240


def hourly(seed: int = 0, **changed: Any) -> Series:
    """Hours from a Wednesday on, with a gap, a column of numbers and one of words."""
    rng = np.random.default_rng(seed)
    y = 20 + 5 * np.sin(np.arange(N) * 2 * np.pi / 24) + rng.normal(size=N)
    y[[30, 31, 300]] = np.nan
    wind = np.array([["N", "S", "W"][i] for i in rng.integers(0, 3, N)], object)
    columns = {"y": y, "x": rng.exponential(2.0, N), "wind": wind}
    times = np.datetime64("2020-01-01", "s") + np.arange(N) * np.timedelta64(3600, "s")
    return Series("y", times, 3600, {**columns, **changed}, "0" * 64)


def test_a_scale_by_hand() -> None:
    plain = Scale.of(np.array([1.0, 3.0, np.nan, 5.0]))
    assert plain.offset is None
    np.testing.assert_allclose(plain.apply(np.array([3.0, 5.0])), [0, 2 / np.sqrt(8 / 3)])
    skewed = np.array([0.0, 0, 0, 0, 1, 1, 2, 30])
    scale = Scale.of(skewed)
    assert scale.offset == pytest.approx(0.3 * skewed.mean())
    logs = np.log(skewed + scale.offset)
    np.testing.assert_allclose(scale.apply(skewed), (logs - logs.mean()) / logs.std())
    np.testing.assert_allclose(scale.invert(scale.apply(skewed)), skewed, atol=1e-12)
    assert scale.invert(np.array([50.0]))[0] < 30 * 10  # not e^50
    assert Scale.of(np.array([7.0, 7.0])).apply(np.array([7.0])) == 0


def test_gaps_are_filled_forward() -> None:
    np.testing.assert_array_equal(filled(np.array([np.nan, 1, np.nan, np.nan, 2])), [0, 1, 1, 1, 2])


def test_features_by_hand() -> None:
    series = hourly()
    plan = Plan.of(series, TRAINING, 24, 12, delay=3, lag=48)
    features, target = plan.features(series)
    assert plan.gaps == ("y",)
    wind = series.columns["wind"]
    share = np.mean(wind[:TRAINING] == "N")
    assert list(plan.words["wind"]) == ["N", "S", "W"]
    assert plan.words["wind"]["N"] == share
    assert plan.seen == 2 + 3 + 1
    np.testing.assert_array_equal(features[:, 0], target)
    known = series.columns["y"][:TRAINING]
    np.testing.assert_allclose(target[50], (series.columns["y"][50] - np.nanmean(known)) / np.nanstd(known))
    assert target[31] == target[30] == target[29]
    np.testing.assert_array_equal(np.flatnonzero(features[:, 5]), [30, 31, 300])
    x = plan.numbers["x"].apply(series.columns["x"])
    np.testing.assert_allclose(features[3:, 1], x[:-3])  # as late as it is known
    np.testing.assert_array_equal(features[:3, 1], 0)
    north = (wind[:-3] == "N").astype(float)
    np.testing.assert_allclose(features[3:, 2], (north - share) / np.sqrt(share * (1 - share)))
    assert features.shape[1] == plan.count == 6 + 6 + 6 + 7 + 1
    at = 6 + 4  # sine and cosine of the hour, after those of month and weekday
    np.testing.assert_allclose(features[:, at], np.sin(2 * np.pi * (np.arange(N) % 24) / 24), atol=1e-12)
    np.testing.assert_allclose(features[: N - 12, 6 + at], features[12:, at], atol=1e-12)  # 12 steps later
    day = (2 + (np.arange(N) + 12) // 24) % 7  # the first is a Wednesday
    np.testing.assert_array_equal(features[:, 18:25].argmax(axis=1), day)
    np.testing.assert_array_equal(features[36:, 25], target[:-36])  # 48 steps before 12 steps later


def test_a_plan_is_json() -> None:
    plan = Plan.of(hourly(), TRAINING, 24, 12, delay=3, lag=48)
    stored = json.loads(json.dumps(plan.as_json()))
    assert Plan.parsed(parsing.Fields(stored, "plan")) == plan
    for name, value, message in (
        ("history", 0, "plan.history: expected an integer >= 1, got 0"),
        ("history", 1 << 40, "plan.history: expected at most"),
        ("numbers", {}, "plan.numbers.y: missing"),
        ("words", {"wind": 3}, "plan.words.wind: expected an object"),
        ("words", {"wind": {"N": 2}}, r"plan.words.wind.N: expected a number in \[0, 1\]"),
        ("target", "z", "plan.numbers.z: missing"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            Plan.parsed(parsing.Fields({**stored, name: value}, "plan"))


def test_what_comes_later_changes_nothing() -> None:
    """Statistics are those of the training part, and a window sees nothing of its targets or what is after them."""
    series = hourly()
    plan = Plan.of(series, TRAINING, 24, 12, delay=3, lag=48)
    other = hourly(1)
    changed = {
        name: np.concatenate([values[:TRAINING], other.columns[name][TRAINING:]])
        for name, values in series.columns.items()
    }
    later = hourly(**changed)
    assert Plan.of(later, TRAINING, 24, 12, delay=3, lag=48) == plan
    features, changed_features = plan.features(series)[0], plan.features(later)[0]
    np.testing.assert_array_equal(features[:TRAINING], changed_features[:TRAINING])
    assert (features[TRAINING:] != changed_features[TRAINING:]).any()


def test_daily_weather_is_seen_a_day_late() -> None:
    """With a value of the whole day, no hour of a day sees that day's: only a forecast at its end could know it."""
    weather = np.repeat(np.arange(N // 24 + 1.0), 24)[:N]
    series = hourly(x=weather)
    features, _ = Plan.of(series, TRAINING, 24, 12, delay=24).features(series)
    scaled = Plan.of(series, TRAINING, 24, 12).features(series)[0][:, 1]
    np.testing.assert_array_equal(features[24:, 1], scaled[:-24])


def test_parts_do_not_overlap() -> None:
    plan = Plan.of(hourly(), TRAINING, 24, 12, lag=48)
    parts = Parts.of(N, TRAINING, 320, plan)
    targets = [set((ends[:, None] + np.arange(1, 13)).ravel()) for ends in (parts.train, parts.validation, parts.test)]
    assert max(targets[0]) == TRAINING - 1  # histories, too, since they end before
    assert (min(targets[1]), max(targets[1])) == (TRAINING, 319)
    assert (min(targets[2]), max(targets[2])) == (320, N - 1)
    assert parts.train[0] == 24 + 48 - 12 - 1  # the first that has all that it looks back at
    for validation, test, name in ((60, 320, "training"), (240, 245, "validation"), (240, 395, "test")):
        with pytest.raises(ValueError, match=f"data: too short: .* steps for {name} hold no window of history 24"):
            Parts.of(N, validation, test, plan)


def test_windows() -> None:
    values = np.arange(20.0)[:, None]
    np.testing.assert_array_equal(histories(values, np.array([4, 9]), 3)[..., 0].T, [[2, 3, 4], [7, 8, 9]])
    np.testing.assert_array_equal(futures(values[:, 0], np.array([4, 9]), 2), [[5, 6], [10, 11]])


def windows(**changed: int) -> Windows:
    ends = np.arange(4, 15)
    sizes = {"history": 3, "batch": 4, "seed": 1, **changed}
    return Windows(np.arange(40, dtype=np.float32).reshape(20, 2), ends, np.stack([ends, ends + 1], 1), **sizes)


def test_an_epoch_takes_each_window_once() -> None:
    batches = windows()
    assert batches.steps_per_epoch == 2
    epochs = []
    for epoch in (0, 1):
        assert batches.epoch == epoch
        taken = [batches.next() for _ in range(2)]
        for batch in taken:
            assert batch["inputs"].shape == (3, 4, 2)
            np.testing.assert_array_equal(batch["inputs"][-1, :, 0], 2 * batch["targets"][:, 0])
        epochs.append(np.concatenate([batch["targets"][:, 0] for batch in taken]))
        assert len(set(epochs[-1])) == 8
    assert (epochs[0] != epochs[1]).any()


def test_a_position_is_json() -> None:
    whole, resumed = windows(), windows()
    for _ in range(3):
        whole.next()
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(4):
        a, b = whole.next(), resumed.next()
        np.testing.assert_array_equal(a["inputs"], b["inputs"])
        np.testing.assert_array_equal(a["targets"], b["targets"])
    with pytest.raises(ValueError, match="data position: made for batch 4, expected 5"):
        windows(batch=5).load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match=r"state.step: expected less than 2, got 2"):
        whole.load_state_dict({**whole.state_dict(), "step": 2})
    with pytest.raises(ValueError, match="batch: expected at most 11, the windows for training, got 12"):
        windows(batch=12)


@pytest.mark.parametrize("step", [600, 86400, 7 * 86400])
def test_how_many_features_there_are(step: int) -> None:
    series = hourly()
    times = np.datetime64("2020-01-01", "s") + np.arange(N) * np.timedelta64(step, "s")
    other = Series("y", times, step, series.columns, "")
    plan = Plan.of(other, TRAINING, 24, 12)
    assert plan.features(other)[0].shape == (N, plan.count)


def test_seasons_and_phases() -> None:
    assert [season(step) for step in (600, 3600, 86400, 7 * 86400, 30 * 86400)] == [144, 24, 7, 52, 1]
    times = np.datetime64("2020-01-01", "s") + np.arange(400) * np.timedelta64(3600, "s")
    steps, count = phase(times, 3600)
    assert count == 168
    np.testing.assert_array_equal(steps[168:], steps[:-168])
    assert len(set(steps[:168])) == 168
    assert phase(times, 600)[1] == 144
    assert phase(times, 7000)[1] == 1
