"""Forecasts of a series: quantiles of its next steps, measured beside naive forecasts and a linear one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, ClassVar

import attrs
import numpy as np

from .. import checks, dispatch, files, nn, parsing
from ..data import forecast as reading
from ..data.batch import Batch
from ..data.forecast import Data
from ..data.forecast_features import Plan, filled, season
from ..data.windows import Parts, Windows, futures
from ..train.checkpoint import RECORD, Checkpoint, CheckpointError
from ..train.ends import LONGEST
from ..train.options import Options
from ..train.settings_fields import Integer, Path, Real, Text, field
from . import forecast_shown as shown
from .base import CommandTask, Done, Shape
from .forecaster import COVERAGE, LEVELS, Forecaster, build, conformal_factor, inputs_of, sizes
from .ridge import Ridge

EPOCHS = 6.0  # of a run without a limit
_LOOKED_AT = 4096  # windows of a validation at most, evenly spread
_LEAST = 1e-12  # error that an error is divided by
_FORECASTS = 7  # that follow each other in the picture


@attrs.frozen(kw_only=True)
class Settings(Options):
    """The settings of ``gpulstm train forecast`` besides a run's options."""

    default_limit: ClassVar = {"epochs": EPOCHS}

    data: str | None = field(
        None, Path(), "beijing, bikes or a CSV file. [default: beijing]", metavar="NAME|CSV", digested=True
    )
    time: str | None = field(None, Text(), "Column of times; or several, joined by commas.", metavar="COL", fixed=True)
    target: str | None = field(None, Text(), "Column to forecast.", metavar="COL", fixed=True)
    columns: str | None = field(
        None, Text(), "Columns that help. [default: all of numbers or a few words]", metavar="A,B", fixed=True
    )
    history: int = field(72, Integer(1), "Steps that are looked back at.", fixed=True)
    horizon: int = field(24, Integer(1), "Steps that are forecast.", fixed=True)
    lag: int | None = field(
        None, Integer(0), "Look at the target so many steps before the horizon's besides, as 168 for hours.", fixed=True
    )
    hidden: int = field(64, Integer(1), "Units of every LSTM layer.", fixed=True)
    layers: int = field(1, Integer(1), "LSTM layers.", fixed=True)
    dropout: float = field(0.5, Real("[0, 1)"), "Share of activations dropped before the head.", fixed=True)
    input_dropout: float = field(0.2, Real("[0, 1)"), "Share of features dropped.", fixed=True)
    weight_dropout: float = field(0.4, Real("[0, 1)"), "Share of recurrent weights dropped.", fixed=True)
    batch: int = field(128, Integer(1), "Windows side by side.", fixed=True)
    epochs: float | None = field(None, Real(LONGEST), f"Train for so many passes. [default: {EPOCHS:g}]")
    minutes: float | None = field(None, Real(LONGEST), "Train for so long (not reproducible bit for bit).")
    validate_every: int = field(100, Integer(0), "In steps; 0 for never.")
    patience: int | None = field(8, Integer(1), "Stop after so many validations without a better loss.")

    def __attrs_post_init__(self) -> None:
        Options.__attrs_post_init__(self)
        self.layout()

    @property
    def source(self) -> str:
        """What ``data`` names."""
        return "beijing" if self.data is None else str(self.data)

    def layout(self) -> reading.Layout:
        """What is where in the data."""
        return reading.layout_of(self.source, self.time, self.target, self.columns, self.lag)


@attrs.frozen(kw_only=True)
class ForecastOptions:
    """The options of ``gpulstm forecast``."""

    data: str | None = field(
        None, Path(), "What to go on from, as in training. [default: the data of training]", metavar="NAME|CSV"
    )
    csv: str | None = field(None, Path(), "Write the forecast there, too.", metavar="OUT")


class ForecastTask(CommandTask):
    """Forecasts of hourly air quality, or of any series in a CSV file; it ends with one, beside the naive ones.

    ``settings`` say how it is trained, ``data`` on what.
    """

    name = "forecast"
    settings_class = Settings
    figures: ClassVar = ("mae", "mase", "mae_naive", "mae_linear", "coverage")
    reading_unit = "steps"
    uses: ClassVar = {"forecast": ForecastOptions}
    metric = "mae"
    unit = "steps"

    def __init__(self, settings: Settings, data: Data) -> None:
        series, layout = data.series, data.layout
        plan = Plan.of(series, data.validation, settings.history, settings.horizon, layout.delay, layout.lag)
        self.parts = Parts.of(len(series.times), data.validation, data.test, plan)
        self._seen, target = inputs_of(plan, series)
        self.config = {**self.config_of(settings, data), "features": self._seen.features.shape[1]}
        device = dispatch.choose_device(settings.device)
        sizes(self.config).check_memory(settings, device)
        self._times, self._scaled, self._values = series.times, target, series.columns[plan.target]
        self._training = data.validation
        for name, ends in vars(self.parts).items():
            if np.isnan(futures(self._values, ends, plan.horizon)).all():
                raise ValueError(f"data: the {name} part has no value of {plan.target!r} to forecast")
        self._scale = plan.numbers[plan.target]
        ridge = Ridge.fit(
            self._seen,
            target,
            self.parts.train,
            self.parts.validation,
            tuple(sorted({min(season(plan.step), plan.history), plan.history})),
            lambda found: self._mae(self._scale.invert(found), self.parts.validation),
        )
        residual = futures(target, self.parts.train, plan.horizon) - ridge.predict(self._seen, self.parts.train)
        self.batches = Windows(
            self._seen.features.astype(np.float32),
            self.parts.train,
            residual.astype(np.float32),
            plan.history,
            settings.batch,
            settings.seed,
        )
        self.model = build(self.config, device)
        self.forecaster = Forecaster(plan, ridge, self.model)

    @classmethod
    def read(cls, settings: Settings, progress: Done | None = None) -> Data:
        return reading.read(settings.source, settings.layout(), progress)

    @classmethod
    def expected_shapes(cls, config: parsing.Fields, found: Mapping[str, Shape]) -> dict[str, Shape]:
        for name in ("features", "hidden", "layers", "history", "horizon"):
            config.integer(name, 1)
        for name in ("dropout", "input_dropout", "weight_dropout"):
            config.real(name, "[0, 1)")
        config.text("data")
        return sizes(config.value).check_found(found, config.path)

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> nn.Sequential:
        return build({**config, "seed": 0}, device)

    def loss(self, output: Any, batch: Batch) -> tuple[Any, Any]:
        """The pinball loss of the quantiles of what the linear model leaves over, and its gradient."""
        quantiles = output.reshape(*batch["targets"].shape, len(LEVELS))
        loss, gradient = nn.quantile(quantiles, batch["targets"], LEVELS)
        return loss, gradient.reshape(output.shape)

    def notes(self) -> dict[str, Any]:
        return {"forecaster": self.forecaster.as_json()}

    def validate(self) -> dict[str, float]:
        """Pinball loss, MAE, and by which factor the intervals must be wider to cover 80 %, on the validation part."""
        ends = self.parts.validation
        if len(ends) > _LOOKED_AT:
            ends = ends[np.linspace(0, len(ends) - 1, _LOOKED_AT).astype(int)]
        quantiles = self.forecaster.quantiles(self._seen, ends)
        known = self._known(ends)
        factor = conformal_factor(quantiles[known], self._targets(ends)[known])
        middle = self.forecaster.values(quantiles, factor)[..., 1]
        return {"loss": self._pinball(quantiles, ends), "mae": self._mae(middle, ends), "factor": factor}

    def evaluate(self, progress: Done | None = None) -> dict[str, float]:
        """Figures of the test part, with intervals widened by the factor that the validation part says.

        MAE of the median; of the last value (persistence), of the value a season before, of the ridge; MASE, the MAE
        divided by that of the seasonal forecast in training (Hyndman and Koehler 2006, "Another look at measures of
        forecast accuracy"); and the share of values in the interval. Values that are missing do not count.
        """
        self.factor = self.validate()["factor"]
        ends, plan = self.parts.test, self.forecaster.plan
        quantiles = self.forecaster.quantiles(self._seen, ends, progress)
        found = self.forecaster.values(quantiles, self.factor)
        self.found = found
        truth = futures(self._values, ends, plan.horizon)
        known = ~np.isnan(truth)
        inside = (truth >= found[..., 0]) & (truth <= found[..., 2])
        mae, naive = self._mae(found[..., 1], ends), self.naive(ends)
        return {
            "loss": self._pinball(quantiles, ends),
            "mae": mae,
            "mase": mae / self._seasonal_error(),
            "mae_naive": self._mae(naive, ends),
            "mae_seasonal": self._mae(self.seasonal(ends), ends),
            "mae_linear": self._mae(self._scale.invert(self.forecaster.ridge.predict(self._seen, ends)), ends),
            "coverage": float(inside[known].mean()),
        }

    def naive(self, ends: np.ndarray) -> np.ndarray:
        """Persistence, (W, horizon): the last value."""
        return np.repeat(filled(self._values)[ends][:, None], self.forecaster.plan.horizon, axis=1)

    def seasonal(self, ends: np.ndarray) -> np.ndarray:
        """(W, horizon): the value a season before, or as many as it takes for that to be known."""
        plan = self.forecaster.plan
        length = season(plan.step)
        steps = np.arange(1, plan.horizon + 1)
        before = ends[:, None] + steps - length * -(-steps // length)
        return filled(self._values)[np.maximum(before, 0)]

    def _seasonal_error(self) -> float:
        """The MAE of :meth:`seasonal` one season ahead, in the training part; of persistence, where that is shorter."""
        training = self._values[: self._training]
        for length in (season(self.forecaster.plan.step), 1):
            errors = np.abs(training[length:] - training[:-length])
            if not np.isnan(errors).all():
                return max(float(np.nanmean(errors)), _LEAST)
        return _LEAST

    def _targets(self, ends: np.ndarray) -> np.ndarray:
        return futures(self._scaled, ends, self.forecaster.plan.horizon)

    def _known(self, ends: np.ndarray) -> np.ndarray:
        return ~np.isnan(futures(self._values, ends, self.forecaster.plan.horizon))

    def _pinball(self, quantiles: np.ndarray, ends: np.ndarray) -> float:
        known = self._known(ends)
        return float(nn.quantile(quantiles[known], self._targets(ends)[known], LEVELS)[0])

    def _mae(self, forecast: np.ndarray, ends: np.ndarray) -> float:
        return float(np.nanmean(np.abs(forecast - futures(self._values, ends, forecast.shape[1]))))

    def summary(self, quality: Mapping[str, float]) -> str:
        season_name = f"the value {season(self.forecaster.plan.step)} steps before {quality['mae_seasonal']:.4g}"
        return (
            f"MAE {quality['mae']:.4g} in the test part (persistence {quality['mae_naive']:.4g}, {season_name}, ridge "
            f"{quality['mae_linear']:.4g}), MASE {quality['mase']:.3f}, {COVERAGE:.0%} intervals cover "
            f"{quality['coverage']:.1%}{self._verdict(quality)}"
        )

    @staticmethod
    def _verdict(quality: Mapping[str, float]) -> str:
        """Who is better than the model, if any is."""
        simple = {"persistence": "mae_naive", "the seasonal forecast": "mae_seasonal", "the ridge": "mae_linear"}
        better = [name for name, figure in simple.items() if quality[figure] <= quality["mae"]]
        return f"; better than the LSTM here: {' and '.join(better)}" if better else ""

    def show(self) -> str:
        ends, horizon = self.parts.test, self.forecaster.plan.horizon
        at = len(ends) // 2
        steps = ends[at] + np.arange(1, horizon + 1)
        lines = {"truth": self._values[steps], "persistence": self.naive(ends[at : at + 1])[0]}
        return f"--- a forecast of {self.forecaster.plan.target} in the test part\n" + shown.table(
            self._times[steps], self.found[at], lines
        )

    def picture(self, path: FilePath) -> None:
        ends, plan = self.parts.test, self.forecaster.plan
        first = len(ends) // 2
        chosen = np.arange(first, len(ends), plan.horizon)[:_FORECASTS]
        steps = (ends[chosen][:, None] + np.arange(1, plan.horizon + 1)).reshape(-1)
        lines = {"truth": self._values[steps], "persistence": self.naive(ends[chosen]).reshape(-1)}
        title = f"{plan.target}: {len(chosen)} forecasts of {plan.horizon} steps in the test part"
        shown.picture(path, title, self._times[steps], self.found[chosen].reshape(-1, len(LEVELS)), lines)

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: ForecastOptions, device: str) -> str:
        """The steps after the end of the data."""
        model, settings = cls.restored(saved, device), cls._data_settings(saved)
        try:
            record = parsing.Fields(saved.record, "record")
            features = record.fields("config").integer("features", 1)
            forecaster = Forecaster.parsed(record.fields("settings").fields("forecaster"), model, features)
            measured = record.fields("validation")
            factor = measured.real("factor", "[0, inf)") if "factor" in measured.value else 1.0
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{saved.path / RECORD}: {error}") from error
        plan = forecaster.plan
        source = settings.source if options.data is None else options.data
        series = reading.series_for(plan, source, settings.layout())
        inputs, _ = inputs_of(plan, series)
        end = len(series.times) - 1
        found = forecaster.values(forecaster.quantiles(inputs, np.array([end])), factor)[0]
        times = series.times[-1] + np.arange(1, plan.horizon + 1) * np.timedelta64(plan.step, "s")
        if options.csv is not None:
            files.replace(checks.path(options.csv, "csv"), shown.as_csv(times, found))
        return f"{plan.target} after {source}, with {COVERAGE:.0%} intervals\n" + shown.table(times, found)

    @classmethod
    def _data_settings(cls, saved: Checkpoint) -> Settings:
        """The settings of the run, which say what is where in its data."""
        settings = cls.settings_of(saved)
        assert isinstance(settings, Settings)
        return settings
