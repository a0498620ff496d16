"""Series with classes from .ts files and folders of CSV files, their split into parts, and batches of them."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import series_files

from gpulstm.data import classify, labelled
from gpulstm.data.classify import SHARE
from gpulstm.data.padded import Padded, padded

HEADER = (
    "#a comment\n@problemName toy\n@timeStamps false\n@univariate false\n@dimensions 2\n@classLabel true b a\n@data\n"
)


def ts(path: Path, lines: list[str], header: str = HEADER) -> Path:
    return series_files.ts(path, lines, header)


def many(count: int, seed: int = 0, classes: str = "ab") -> list[str]:
    """Lines of so many series a class, of 2 to 5 steps."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        for label in classes:
            values = rng.standard_normal((2, 2 + number % 4)).round(6)
            lines.append(":".join([*(",".join(map(str, channel)) for channel in values), label]))
    return lines


def test_a_ts_file(tmp_path: Path) -> None:
    found = labelled.read(ts(tmp_path / "toy.ts", ["1,2,3:4,5,6:b", "", "# between", "-1e-2,0:7,8.5:a"]))
    assert [series.label for series in found] == ["b", "a"]
    assert found[1].where == f"{tmp_path / 'toy.ts'}:11"
    np.testing.assert_array_equal(found[0].values, [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(found[1].values, [[-0.01, 7], [0, 8.5]])


def test_a_ts_file_without_classes(tmp_path: Path) -> None:
    found = labelled.read(ts(tmp_path / "toy.ts", ["1,2:3,4"], HEADER.replace("true b a", "false")))
    assert found[0].label is None
    np.testing.assert_array_equal(found[0].values, [[1, 3], [2, 4]])
    assert labelled.read(ts(tmp_path / "toy.ts", ["1,2:3,4:?"]))[0].label is None


def test_a_folder_of_csv_files(tmp_path: Path) -> None:
    for label in ("walk", "run"):
        (tmp_path / label).mkdir()
    (tmp_path / "walk" / "2.csv").write_text("\ufeffx;y\n1;2\n3;4\n\n", encoding="utf-8")
    (tmp_path / "run" / "1.csv").write_text("5,6\r\n7,8\r\n9,10\r\n")
    (tmp_path / "run" / "notes.txt").write_text("not looked at")
    run, walk = labelled.read(tmp_path)
    assert (run.label, walk.label) == ("run", "walk")
    np.testing.assert_array_equal(run.values, [[5, 6], [7, 8], [9, 10]])
    np.testing.assert_array_equal(walk.values, [[1, 2], [3, 4]])
    assert labelled.read(tmp_path / "run" / "1.csv")[0].label is None
    assert [series.label for series in labelled.read(tmp_path / "run")] == [None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2:3,x:a", "toy.ts:9: channel 2: expected a number, got 'x'"),
        ("1,?:3,4:a", "toy.ts:9: channel 1: expected a number, got '?' for a missing value"),
        ("1,2:3,nan:a", "toy.ts:9: channel 2: expected a finite number, got 'nan'"),
        ("1,2:3:a", "toy.ts:9: channel 2: expected 2 values, as channel 1 has, got 1"),
        ("1,2::a", "toy.ts:9: channel 2 is empty; expected numbers"),
        ("1,2:3,4:5,6:a", "toy.ts:9: expected 2 channels, as the header says, got 3"),
        ("1,2:3,4:c", "toy.ts:9: expected a class, one of ['b', 'a'], got 'c'"),
        ("1,2:3,4:", "toy.ts:9: expected a class, one of ['b', 'a'], got ''"),
        ("a", "toy.ts:9: expected a class after a colon at the end, got 'a'"),
    ],
)
def test_a_bad_line_of_a_ts_file(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # the message is compared below
        labelled.read(ts(tmp_path / "toy.ts", ["1:2:a", line]))
    assert str(raised.value) == f"{tmp_path}/{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2:a\n", "bad.ts:1: expected a line of the header, or @data before the series"),
        ("@timeStamps true\n@data\n1:2", "bad.ts:2: expected series without time stamps, got @timeStamps true"),
        ("@targetLabel true\n@data\n1:2", "bad.ts:2: expected @classLabel, got @targetLabel, which is for regression"),
        (HEADER, "bad.ts: expected series after @data, found none"),
        ("@classLabel true\n@data\n1:a\n1:2:a", "bad.ts:4: expected 1 channels, as {}/bad.ts:3 has, got 2"),
    ],
)
def test_a_bad_ts_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.ts").write_text(text)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        labelled.read(tmp_path / "bad.ts")
    assert str(raised.value) == f"{tmp_path}/{message.format(tmp_path)}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a/1.csv: the file is empty; expected a row of numbers for each step"),
        (b"x,y\n", "a/1.csv: a header without rows; expected a row of numbers for each step"),
        (b"x,y\n1,2\n\n3,walk\n", "a/1.csv:4: expected a number, got 'walk'"),
        (b"1,2\n3,\n", "a/1.csv:2: expected a number, got '' for a missing value"),
        (b"1,2\n3\n", "a/1.csv:2: expected 2 columns, as line 1 has, got 1"),
        (b"1,2\n3,\xff\n", "a/1.csv:2: expected text in UTF-8, got the byte 0xff"),
        (b"1\n3\n", "b/1.csv: expected 1 channels, as {}/a/1.csv has, got 2"),
        (b"y,x\n1,2\n", "b/1.csv: expected the columns ['y', 'x'], got ['x', 'y']"),
    ],
)
def test_a_bad_csv_file(content: bytes, message: str, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.csv").write_text("x,y\n1,2\n")
    (tmp_path / "a" / "1.csv").write_bytes(content)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        labelled.read(tmp_path)
    assert str(raised.value) == f"{tmp_path}/{message.format(tmp_path)}"


def test_reading_is_told(tmp_path: Path) -> None:
    for name in ("1.csv", "2.csv"):
        (tmp_path / name).write_text("1,2\n")
    told: list[tuple[int, int]] = []
    labelled.read(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 8), (8, 8)]


def test_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: expected .csv files in .*, in a subfolder for each class, found none"):
        labelled.read(tmp_path)
    with pytest.raises(ValueError, match=r"data: expected a .ts file, a .csv file or a folder, got '.*gestures.npy'"):
        labelled.read(tmp_path / "gestures.npy")
    with pytest.raises(ValueError, match=r"test: could not read '.*none.ts': No such file"):
        labelled.read(tmp_path / "none.ts", "test")
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "1.csv", tmp_path / "a" / "1.csv"):
        path.write_text("1\n")
    with pytest.raises(ValueError, match=r"1.csv: expected each .csv file in the subfolder of its class, as .*a.1.csv"):
        labelled.read(tmp_path)


def test_classes_are_in_order() -> None:
    assert labelled.in_order(["10", "9", "b", "a2", "a10", "9"]) == ("9", "10", "a2", "a10", "b")


def contents(part: classify.Part, data: classify.Classes) -> set[bytes]:
    """The series of a part as they were before they were scaled, nearly."""
    back = [values * np.float32(data.deviation) + np.float32(data.mean) for values in part.series]
    return {values.round(4).tobytes() for values in back}


@pytest.mark.parametrize("own_test", [False, True])
def test_nothing_is_in_two_parts(own_test: bool, tmp_path: Path) -> None:
    lines = many(20)
    file = ts(tmp_path / "toy.ts", [*lines, *lines[:30]])  # some twice
    test = ts(tmp_path / "test.ts", many(7, seed=1)) if own_test else None
    data = classify.read(file, test)
    parts = (data.train, data.validation, data.test)
    sets = [contents(part, data) for part in parts]
    for one, other in itertools.combinations(sets, 2):
        assert not one & other
    assert len(set.union(*sets)) == 40 + 14 * own_test
    tested = 7 if own_test else round(20 * SHARE)
    left = 20 if own_test else 20 - tested
    for found, count in zip(sets, (left - round(left * SHARE), round(left * SHARE), tested), strict=True):
        assert len(found) == 2 * count  # as many of each class
    assert data.names == ("a", "b")
    steps = np.concatenate(data.train.series)
    np.testing.assert_allclose(steps.mean(0), 0, atol=1e-6)  # of what is trained on alone
    np.testing.assert_allclose(steps.std(0), 1, atol=1e-6)
    assert abs(np.concatenate(data.test.series).mean()) > 1e-3


def test_the_split_follows_contents(tmp_path: Path) -> None:
    lines = many(10)
    one = classify.read(ts(tmp_path / "one.ts", lines))
    other = classify.read(ts(tmp_path / "other.ts", lines[::-1]))
    for name in ("train", "validation", "test"):
        assert contents(getattr(one, name), one) == contents(getattr(other, name), other)
    assert one.digest != other.digest  # other batches are made of another order
    (tmp_path / "moved").mkdir()
    assert classify.read(ts(tmp_path / "moved" / "x.ts", lines)).digest == one.digest
    with_test = classify.read(tmp_path / "one.ts", ts(tmp_path / "t.ts", many(3, seed=1)))
    assert len({one.digest, with_test.digest}) == 2
    assert with_test.digest != classify.read(tmp_path / "one.ts", ts(tmp_path / "t.ts", many(3, seed=2))).digest


def test_a_test_series_that_was_trained_on_is_told(tmp_path: Path) -> None:
    lines = many(10)
    data = classify.read(ts(tmp_path / "a.ts", lines), ts(tmp_path / "b.ts", [*lines[:3], *many(2, seed=1)]))
    assert data.notes == ("3 of the test series are in the training part too",)
    assert data.describe().endswith("2 channels, 2 to 5 steps, 2 classes; 3 of the test series are in the training "
                                    "part too")  # fmt: skip


def test_bad_parts(tmp_path: Path) -> None:
    header = HEADER.replace(" b a", "")
    good = ts(tmp_path / "good.ts", many(10))

    def refused(message: str, data: Any, test: Any = None) -> None:
        with pytest.raises(ValueError, match=message):
            classify.read(data, test)

    refused(
        r"new.ts:10: the class 'c' is in the test part alone; expected one of \('a', 'b'\)",
        good,
        ts(tmp_path / "new.ts", many(1, classes="abc"), header),
    )
    refused("wide.ts:4: expected 2 channels, as the training part has, got 1", good,
            ts(tmp_path / "wide.ts", ["1,2:a"], "@classLabel true\n@dimensions 1\n@data\n"))  # fmt: skip
    refused("data: the class 'b' has too few series: one is left to train on and to validate; expected another",
            ts(tmp_path / "few.ts", [*many(5, classes="a"), *many(2, classes="b")]))  # fmt: skip
    least, second, *others = sorted(range(12), key=lambda n: hashlib.sha256(np.float64([n, n]).tobytes()).digest())
    mixed = [f"{n}:{n}:a" for n in (second, *others)] + [f"{n}:{n}:b" for n in (least, second)]
    refused("data: of the class 'b' no series is left to train on: each is to test, as equal series of other classes",
            ts(tmp_path / "mixed.ts", mixed))  # fmt: skip
    refused("at least two classes, got .'a',. alone", ts(tmp_path / "one.ts", many(5, classes="a")))
    refused("none.ts:8: a series without a class", ts(tmp_path / "none.ts", ["1:2:?"]))
    refused("large.ts: the values of channel 1 are too large",
            ts(tmp_path / "large.ts", [f"{n}e300,2:3,4:{label}" for n in range(1, 9) for label in "ab"]))  # fmt: skip
    refused(r"large.ts:9: holds values that are too large beside those of the training part", good,
            ts(tmp_path / "large.ts", ["1:2:a", "-1e300:2:a"]))  # fmt: skip
    refused("test: expected none for vowels, which has its own, got 'x.ts'", "vowels", "x.ts")


def test_data_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ts(tmp_path / "Toy_TRAIN.ts", many(10))
    ts(tmp_path / "Toy_TEST.ts", many(4, seed=1))
    asked: list[str] = []
    monkeypatch.setattr(classify.packages, "get", lambda name, progress=None: asked.append(name) or tmp_path)
    data = classify.read()
    assert asked == ["vowels"]
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 8)
    assert data.source == classify.packages.PACKAGES["vowels"].source
    expected = hashlib.sha256(classify._RULE.encode())
    for index, part in enumerate(("TRAIN", "TEST")):
        content = (tmp_path / f"Toy_{part}.ts").read_bytes()
        expected.update((b" test" if index else b"") + b" %d " % len(content) + content)
    assert data.digest == expected.hexdigest()


# Batches


def ragged(count: int = 23) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    series = [np.full((rng.integers(1, 30), 2), number + 1, np.float32) for number in range(count)]
    return series, np.arange(count)


def test_padding() -> None:
    inputs, lengths = padded([np.ones((2, 1), np.float32), np.full((3, 1), 2, np.float32)])
    np.testing.assert_array_equal(inputs[..., 0], [[1, 2], [1, 2], [0, 2]])
    np.testing.assert_array_equal(lengths, [2, 3])
    assert inputs.dtype == np.float32


def test_every_epoch_has_every_series_once() -> None:
    series, labels = ragged()
    batches = Padded(series, labels, 4, seed=3)
    assert batches.steps_per_epoch == 6
    orders = []
    for epoch in range(3):
        assert batches.epoch == epoch
        epoch_batches = [batches.next() for _ in range(6)]
        orders.append(np.concatenate([batch["targets"] for batch in epoch_batches]))
        assert sorted(orders[-1]) == list(range(23))
        for batch in epoch_batches:
            assert batch.fresh
            assert batch.tokens == batch.lengths.sum()
            for lane, (label, length) in enumerate(zip(batch["targets"], batch.lengths, strict=True)):
                np.testing.assert_array_equal(batch["inputs"][:length, lane], series[label])
                assert not batch["inputs"][length:, lane].any()
        padding = sum(batch["inputs"].shape[0] * len(batch.lengths) - batch.lengths.sum() for batch in epoch_batches)
        assert padding < 0.3 * sum(map(len, series))  # like lengths are put together
    assert not np.array_equal(orders[0], orders[1])


def test_a_position_is_restored_with_its_noise() -> None:
    series, labels = ragged()
    whole, half = (Padded(series, labels, 4, seed=3, noise=0.5) for _ in range(2))
    for _ in range(8):
        whole.next()
    half.load_state_dict(whole.state_dict())
    for _ in range(6):
        one, other = whole.next(), half.next()
        np.testing.assert_array_equal(one["inputs"], other["inputs"])
        np.testing.assert_array_equal(one["targets"], other["targets"])
        valid = np.arange(len(one["inputs"]))[:, None] < one.lengths
        assert not one["inputs"][~valid].any()
        noise = one["inputs"][valid] - (one["targets"] + 1)[np.nonzero(valid)[1], None]
        assert 0.3 < noise.std() < 0.7


def test_a_bad_position() -> None:
    series, labels = ragged()
    batches = Padded(series, labels, 4)
    state = batches.state_dict()
    for changed, message in (
        ({"step": 6}, "state.step: expected less than 6, got 6"),
        ({"batch": 5}, "data position: made for batch 5, expected 4"),
        ({"series": 5}, "data position: made for series 5, expected 23"),
        ({"seed": 5}, "data position: made for seed 5, expected 0"),
        ({"epoch": -1}, "state.epoch: expected an integer >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            batches.load_state_dict(state | changed)
    with pytest.raises(ValueError, match="series: expected some, with a label each, got 0 and 23 labels"):
        Padded([], labels, 4)
