"""Series from CSV files: delimiters, times, gaps, columns of words; every mistake named by file, line and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpulstm.data import series
from gpulstm.data.series import Series


def read(folder: Path, text: str, time: str = "t", target: str = "y", columns: list[str] | None = None) -> Series:
    file = folder / "data.csv"
    file.write_text(text, "utf-8")
    return series.read(file, time, target, columns)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters(tmp_path: Path, delimiter: str) -> None:
    text = 't,y,z\n2020-01-01,1,a\n2020-01-02,NA,b\n2020-01-03,3.5,"a"\n'.replace(",", delimiter)
    found = read(tmp_path, text)
    assert found.step == 86400
    np.testing.assert_array_equal(found.columns["y"], [1, np.nan, 3.5])
    assert list(found.columns["z"]) == ["a", "b", "a"]
    assert str(found.times[-1]) == "2020-01-03T00:00:00"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2020-03-04 05:00", "2020-03-04 06:00"),
        ("2020-03-04T05:00:00Z", "2020-03-04T06:00:00Z"),
        ("2020-03-04T06:00:00+01:00", "2020-03-04T08:00:00+02:00"),
        ("2020/03/04 05:00", "2020/03/04 06:00"),
        ("04.03.2020 05:00", "04.03.2020 06:00"),
        ("03/04/2020 05:00:00", "03/04/2020 06:00:00"),
        ("1583298000", "1583301600"),
    ],
)
def test_forms_of_times(tmp_path: Path, first: str, second: str) -> None:
    found = read(tmp_path, f"t,y\n{first},1\n{second},2\n")
    assert [str(time) for time in found.times] == ["2020-03-04T05:00:00", "2020-03-04T06:00:00"]


def test_one_form_of_time_suits_all_lines(tmp_path: Path) -> None:
    found = read(tmp_path, "t,y\n" + "".join(f"{day:02}/03/2020,{day}\n" for day in range(11, 15)))
    assert [str(time)[:10] for time in found.times[::3]] == ["2020-03-11", "2020-03-14"]
    with pytest.raises(ValueError, match=r"line 3, column t: .* in the form of '01/02/2020', got '13/13/2020'"):
        read(tmp_path, "t,y\n01/02/2020,1\n13/13/2020,2\n")


def test_cells_may_hold_line_breaks(tmp_path: Path) -> None:
    found = read(tmp_path, 't,y,z\n2020-01-01,1,"a\nb"\n2020-01-02,2,c\n')
    assert list(found.columns["z"]) == ["a\nb", "c"]


def test_a_time_in_several_columns(tmp_path: Path) -> None:
    rows = "".join(f"2020,2,{28 + hour // 24},{hour % 24},{hour}\n" for hour in range(30))
    found = read(tmp_path, "year,month,day,hour,y\n" + rows, "year, month,day,hour")
    assert found.step == 3600
    assert str(found.times[-1]) == "2020-02-29T05:00:00"
    assert set(found.columns) == {"y"}


def test_gaps_are_missing_steps(tmp_path: Path) -> None:
    found = read(tmp_path, "t,y,w\n2020-01-01,1,a\n2020-01-02,2,a\n2020-01-03,3,b\n2020-01-06,6,b\n")
    np.testing.assert_array_equal(found.columns["y"], [1, 2, 3, np.nan, np.nan, 6])
    assert list(found.columns["w"]) == ["a", "a", "b", "", "", "b"]
    assert found.notes == ("2 times are missing",)


def test_columns_are_chosen_or_all_that_can_be_used(tmp_path: Path) -> None:
    rows = "".join(f"2020-01-{day:02},{day},{day % 2},remark {day}\n" for day in range(1, 30))
    text = "t,y,z,remark\n" + rows
    found = read(tmp_path, text)
    assert list(found.columns) == ["y", "z"]
    assert found.notes == ("column 'remark' left out, which holds neither numbers nor a few words",)
    assert list(read(tmp_path, text, columns=[]).columns) == ["y"]
    with pytest.raises(
        ValueError, match=r"columns: '.*data.csv', column 'remark': expected numbers or at most 20 word"
    ):
        read(tmp_path, text, columns=["remark"])


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    text = "t,y\n2020-01-01,1\n2020-01-02,2\n"
    assert read(tmp_path, text).digest == read(tmp_path, text).digest != read(tmp_path, text + "\n").digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,x\n2020-01-01,1\n2020-01-02,2\n", r"target: '.*data.csv' has no column 'y'; expected one of t, x"),
        ("s,y\n2020-01-01,1\n2020-01-02,2\n", r"time: '.*data.csv' has no column 't'; expected one of s, y"),
        (
            "t,y\n2020-01-02,1\n2020-01-01,2\n",
            r"data.csv', line 3, column t: expected a time after 2020-01-02T00:00:00, .*, got 2020-01-01T00:00:00",
        ),
        ("t,y\n2020-01-01,1\n2020-01-01,2\n", "line 3, column t: expected a time after 2020-01-01T"),
        ("t,y\n2020-01-01,1\nsoon,2\n", "line 3, column t: expected a time .* in the form of '2020-01-01', got 'soon'"),
        ("t,y\nsoon,1\nlater,2\n", "line 2, column t: expected a time such as 2010-12-31 23:00, got 'soon'"),
        ("t,y\n2020-01-01,1\n2020-01-02,much\n", "line 3, column 'y': expected a number, got 'much'"),
        ("t,y\n2020-01-01,1\n2020-01-02,inf\n", "line 3, column 'y': expected a number, got 'inf'"),
        ("t,y,z\n2020-01-01,1,1\n2020-01-02,1,x\n", "line 3, column 'z': expected a number, got 'x'"),
        ("t,y\n2020-01-01,1\n2020-01-02\n", "line 3: expected 2 columns, as in its first line, got 1"),
        ("t,y,y\n2020-01-01,1,2\n2020-01-02,1,2\n", "line 1: expected a name once for each column, got 'y' again"),
        ("t,y\n2020-01-01,1\n", "expected a line of names and at least two of values, got 1"),
        ("", "expected a line of names and at least two of values, got 0"),
        ("t,y\n2020-01-01,\n2020-01-02,\n", "column 'y': expected numbers, found none"),
        (
            "t,y\n2020-01-01,1\n2020-01-02,1\n2020-01-03,1\n2020-01-03 12:00,1\n",
            "line 5: the time 2020-01-03T12:00:00 is no multiple of 86400 s after the first",
        ),
        ("t,y\n2020-01-01,1\n2020-01-02,1\n2022-01-03,1\n", "has 3 times, 86400 s apart, .* at least a quarter of the"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_bytes(b"t,y\n2020-01-01,1\n2020-01-02,\xff\n")
    with pytest.raises(ValueError, match=r"data: '.*data.csv', line 3: is no UTF-8"):
        series.read(file, "t", "y")
    with pytest.raises(ValueError, match=r"data: could not read '.*nowhere.csv': No such file"):
        series.read(tmp_path / "nowhere.csv", "t", "y")
