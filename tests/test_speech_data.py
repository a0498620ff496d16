"""Spoken digits as data: what is read, how it is split, its features, and how it is joined into strings and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import error, invoke
from spoken_digits import COLUMNS, made, written

from gpulstm.data import speech_features
from gpulstm.data.speech import Recordings, Spoken, read, recordings
from gpulstm.data.strings import COUNTS, Strings, fixed, joined, plan


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def spoken(file: Path) -> Spoken:
    return read(file)


def train(*arguments: Any) -> Any:
    return invoke("train", "speech", *arguments)


# What is read


def test_recordings_are_those_of_the_file(file: Path) -> None:
    given, found = made(), recordings(file)
    assert [len(values) for values in found.values] == given["lengths"].tolist()
    np.testing.assert_array_equal(np.concatenate(found.values), given["X"])
    np.testing.assert_array_equal(found.digits, given["y"])


def test_a_recording_is_in_one_part_alone(file: Path, tmp_path: Path) -> None:
    twice = made()
    twice = {name: np.concatenate([value, value]) for name, value in twice.items()}
    np.savez(tmp_path / "twice.npz", **twice)  # type: ignore[arg-type]
    once, both = read(file), read(tmp_path / "twice.npz")
    parts = [{values.tobytes() for values in part.values} for part in (both.train, both.validation, both.test)]
    assert [len(part) for part in parts] == [112, 16, 32]
    assert len(set.union(*parts)) == 160
    assert both.notes == ("160 that are there twice are left out",)
    for part in ("train", "validation", "test"):
        assert [values.tobytes() for values in getattr(once, part).values] == [
            values.tobytes() for values in getattr(both, part).values
        ]
    assert once.digest != both.digest


def test_the_split_does_not_depend_on_the_order(spoken: Spoken, tmp_path: Path) -> None:
    given = made()
    pieces = np.split(given["X"], np.cumsum(given["lengths"])[:-1])[::-1]
    np.savez(tmp_path / "turned.npz", X=np.concatenate(pieces), y=given["y"][::-1], lengths=given["lengths"][::-1])
    turned = read(tmp_path / "turned.npz")
    for part in ("train", "validation", "test"):
        for own, other in zip(getattr(spoken, part).values, getattr(turned, part).values, strict=True):
            np.testing.assert_array_equal(own, other)
    np.testing.assert_array_equal(spoken.mean, turned.mean)


def test_scale_and_gaps_are_those_of_the_training_part_alone(spoken: Spoken, tmp_path: Path) -> None:
    steps = np.concatenate([speech_features.with_deltas(values) for values in spoken.train.values]).astype(np.float64)
    np.testing.assert_allclose(spoken.mean, steps.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(spoken.deviation, steps.std(axis=0), rtol=1e-6)
    own = {step.tobytes() for values in spoken.train.values for step in values}
    assert {step.tobytes() for step in spoken.quiet} <= own
    assert len(spoken.quiet) == round(0.03 * len(steps))
    loudest = spoken.quiet[:, 0].max()
    assert np.count_nonzero(steps[:, 0] < loudest) < len(spoken.quiet)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": None}, "expected arrays X, y and lengths, got ['lengths', 'y']"),
        ({"y": None}, "expected arrays X, y and lengths, got ['X', 'lengths']"),
        ({"X": np.zeros((4, 3), int)}, "X: expected floats of shape (steps, F), got int64 of shape (4, 3)"),
        ({"X": np.zeros(4)}, "X: expected floats of shape (steps, F), got float64 of shape (4,)"),
        ({"X": np.zeros((5, 3))}, "lengths: expected numbers above 1 that add up to the 5 steps of X, got 2 at least"),
        ({"X": np.full((4, 1), np.nan)}, "X: expected finite numbers, got [nan] in row 0"),
        ({"lengths": np.array([3, 1])}, "lengths: expected numbers above 1 that add up to the 4 steps of X, got 1 at"),
        ({"lengths": np.array([2.0, 2.0])}, "lengths: expected integers of shape (recordings,), got float64 of shape"),
        ({"y": np.array([3])}, "y: expected integers of shape (2,), got int64 of shape (1,)"),
        ({"y": np.array([3, 10])}, "y: expected digits 0 to 9, got 10 for recording 1"),
        ({"y": np.array([3, None])}, "expected an NPZ file of arrays X, y and lengths: Object arrays cannot be loaded"),
        ({}, "2 different recordings, of which a part gets 0; expected 150 or more"),
    ],
)
def test_bad_files_are_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    given = {"X": np.arange(12, dtype=np.float32).reshape(4, 3), "y": np.array([3, 4]), "lengths": np.array([2, 2])}
    given |= changed
    np.savez(path, allow_pickle=True, **{name: value for name, value in given.items() if value is not None})
    line = error(train("--data", path, "--out", tmp_path / "out"))
    assert f"data: {path}: {message}" in line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("step-*"))


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    for name in ("text.npz", "single.npz", "folder.npz"):
        line = error(train("--data", tmp_path / name, "--out", tmp_path / "out"))
        assert f"data: {tmp_path / name}: expected an NPZ file of arrays X, y and lengths" in line
    assert "none.npz" in error(train("--data", tmp_path / "none.npz", "--out", tmp_path / "out"))


# Features


def test_slopes() -> None:
    line = 3 + 0.5 * np.arange(8.0)
    found = speech_features.deltas(np.stack([line, np.ones(8)], axis=1))
    np.testing.assert_allclose(found[2:-2], [[0.5, 0]] * 4)  # of a line its own
    np.testing.assert_allclose(found[0, 0], (1 * 0.5 + 2 * 1.0) / 10)  # with the first step repeated before it
    np.testing.assert_allclose(found[1, 0], (1 * 1.0 + 2 * 1.5) / 10)
    np.testing.assert_array_equal(found[:, 1], 0)
    both = speech_features.with_deltas(np.stack([line, line**2], axis=1).astype(np.float32))
    assert both.shape == (8, 6)
    assert both.dtype == np.float32
    np.testing.assert_allclose(both[:, 4:], speech_features.deltas(both[:, 2:4]))
    np.testing.assert_array_equal(speech_features.deltas(np.ones((1, 2))), 0)


def test_scales() -> None:
    mean, deviation = speech_features.scale([np.array([[1.0, 5.0]]), np.array([[2.0, 5.0], [6.0, 5.0]])])
    np.testing.assert_allclose(mean, [3, 5])
    np.testing.assert_allclose(deviation, [np.sqrt(14 / 3), 1])
    np.testing.assert_allclose(
        speech_features.scaled(np.array([[5.0, 7.0]]), mean, deviation)[0], [2 / np.sqrt(14 / 3), 2]
    )


# Strings


def test_a_string_is_its_recordings_between_gaps() -> None:
    of = Recordings(tuple(np.full((k + 2, 1), 10.0 * k + 10, np.float32) for k in range(3)), np.array([7, 0, 9]))
    quiet = np.float32([[1], [2]])
    data = Spoken("", of, of, of, quiet, np.zeros(3), np.ones(3), "")
    found = joined(of, [2, 0], data, np.random.default_rng(1))
    np.testing.assert_array_equal(found.labels, [10, 8])
    values = found.values[:, 0]
    loud = values[values >= 10]
    np.testing.assert_array_equal(loud, [30] * 4 + [10] * 2)
    assert set(values[values < 10].tolist()) <= {1.0, 2.0}
    np.testing.assert_allclose(found.values, speech_features.with_deltas(values[:, None]))


def test_a_plan_uses_every_recording_once() -> None:
    found = plan(47, COUNTS, np.random.default_rng(0))
    used = [number for which in found for number in which]
    assert sorted(map(len, found)) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert len(set(used)) == len(used) == 45
    assert set(used) <= set(range(47))


def test_what_is_measured_on_is_always_the_same(spoken: Spoken) -> None:
    first, second = (fixed(spoken.test, (10,), 2, spoken) for _ in range(2))
    assert len(first) == 6
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        assert len(a.labels) == 10


def test_batches_are_strings_of_training_recordings(spoken: Spoken) -> None:
    batches = Strings(spoken, 4, seed=3)
    assert batches.steps_per_epoch == 35 // 4
    own = speech_features.scaled(np.concatenate(spoken.train.values), spoken.mean[:COLUMNS], spoken.deviation[:COLUMNS])
    known = {step.tobytes() for step in own}
    orders = []
    for epoch in range(2):
        for _ in range(batches.steps_per_epoch):
            assert batches.epoch == epoch
            batch = batches.next()
            assert batch.fresh
            assert batch["inputs"].dtype == np.float32
            assert batch.tokens == batch.lengths.sum()
            for b, (steps, count) in enumerate(zip(batch.lengths, batch["target_lengths"], strict=True)):
                assert {step.tobytes() for step in batch["inputs"][:steps, b, :COLUMNS]} <= known
                assert not batch["inputs"][steps:, b].any()
                labels = batch["targets"][b]
                assert ((labels[:count] >= 1) & (labels[:count] <= 10)).all()
                assert not labels[count:].any()
            orders.append(batch["targets"].tobytes())
    half = len(orders) // 2
    assert orders[:half] != orders[half:]


def test_batches_go_on_anywhere(spoken: Spoken) -> None:
    whole = Strings(spoken, 5, seed=2, noise=0.5)
    states, expected = [], []
    for _ in range(2 * whole.steps_per_epoch + 1):
        states.append(whole.state_dict())
        expected.append(whole.next())
    for at in (0, 3, whole.steps_per_epoch, 2 * whole.steps_per_epoch):
        other = Strings(spoken, 5, seed=2, noise=0.5)
        other.load_state_dict(states[at])
        assert other.state_dict() == states[at]
        found = other.next()
        for name in ("inputs", "targets", "target_lengths"):
            np.testing.assert_array_equal(found[name], expected[at][name])
    with pytest.raises(ValueError, match="data position: made for seed 2, expected 3"):
        Strings(spoken, 5, seed=3).load_state_dict(states[0])
    with pytest.raises(ValueError, match=r"state.step: expected less than 7, got 7"):
        whole.load_state_dict(states[0] | {"step": 7})
    with pytest.raises(ValueError, match="batch: expected at most 35, all that an epoch has, got 36"):
        Strings(spoken, 36)


def test_noise_is_of_its_deviation_and_leaves_padding_alone(spoken: Spoken) -> None:
    plain, noisy = (Strings(spoken, 35, seed=1, noise=noise).next() for noise in (0.0, 0.5))
    counted = np.arange(len(plain["inputs"]))[:, None] < plain.lengths
    difference = noisy["inputs"] - plain["inputs"]
    assert not difference[~counted].any()
    np.testing.assert_allclose(difference[counted].std(), 0.5, rtol=0.05)
