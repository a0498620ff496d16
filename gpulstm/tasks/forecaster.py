"""Models of forecasts: quantiles from a ridge regression and an LSTM on what that leaves over."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays, nn, parsing
from ..cells import lstm
from ..config import Config
from ..data.forecast_features import Plan, phase
from ..data.series import Series
from ..data.windows import histories
from .model_sizes import Sizes
from .ridge import Inputs, Ridge, width

Done = Callable[[int, int], None]  # is called with how many of how many windows are done

LEVELS = (0.1, 0.5, 0.9)  # the quantiles that are forecast
COVERAGE = 0.8  # of the interval between the outer two
_ROWS = 512  # windows that the model is called with at a time


def build(config: Mapping[str, Any], device: str = "cpu") -> nn.Sequential:
    """The model that ``config`` describes, on ``device``: windows (T, B, F) to quantiles (B, horizon · 3)."""
    rng = arrays.generator(config["seed"], "seed")
    hidden = config["hidden"]
    stack = nn.LSTM(
        config["features"],
        hidden,
        config["layers"],
        dropout=config["dropout"],
        weight_dropout=config["weight_dropout"],
        init="recommended",
        seed=rng,
    )
    head = nn.LastStepHead(hidden, config["horizon"] * len(LEVELS), seed=rng)
    head.params["weight"][:] *= 0.1  # so that it begins near the linear model
    return nn.Sequential(nn.Dropout(config["input_dropout"]), stack, nn.Dropout(config["dropout"]), head).to(device)


def sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes of the model that :func:`build` makes of ``config``."""
    hidden, outputs = config["hidden"], config["horizon"] * len(LEVELS)
    return Sizes(
        Config(lstm, config["features"], hidden, config["layers"]),
        layer=1,
        others={"3.weight": (outputs, hidden), "3.bias": (outputs,)},
        fields={"features": "1.weight_ih_l0", "hidden": "1.weight_hh_l0", "horizon": "3.bias"},
    )


@dataclass(frozen=True)
class Forecaster:
    """A model and the linear one under it: what both make of a series."""

    plan: Plan
    ridge: Ridge
    model: Any

    def quantiles(self, inputs: Inputs, ends: np.ndarray, progress: Done | None = None) -> np.ndarray:
        """(W, horizon, 3) scaled, in rising order, for the histories that end at ``ends`` (W,)."""
        library = arrays.library(self.model.device)
        features = inputs.features.astype(np.float32)
        found = []
        for begin in range(0, len(ends), _ROWS):
            part = histories(features, ends[begin : begin + _ROWS], self.plan.history)
            output, _ = self.model(library.from_host(part))
            found.append(arrays.on_host(output, "output").reshape(-1, self.plan.horizon, len(LEVELS)))
            if progress is not None:
                progress(min(begin + _ROWS, len(ends)), len(ends))
        residual = np.concatenate(found).astype(np.float64)
        return np.sort(self.ridge.predict(inputs, ends)[..., None] + residual, axis=-1)

    def as_json(self) -> dict[str, Any]:
        """All but the model, as JSON can hold it."""
        weights = base64.b64encode(self.ridge.weights.astype("<f4").tobytes()).decode()
        return {"plan": self.plan.as_json(), "ridge": {"span": self.ridge.span, "weights": weights}}

    @classmethod
    def parsed(cls, stored: parsing.Fields, model: Any, features: int) -> Forecaster:
        """What :meth:`as_json` gave, with ``model``, which takes so many ``features``.

        Raises:
            ValueError, TypeError: it is none; the message names the field.
        """
        plan, ridge = Plan.parsed(stored.fields("plan")), stored.fields("ridge")
        span, text = ridge.integer("span", 1), ridge.text("weights")
        try:
            weights = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{ridge.path}.weights: expected float32 in base64, got {error}") from error
        if span > plan.history:
            raise ValueError(f"{ridge.path}.span: expected at most the history, {plan.history}, got {span}")
        shape = width(plan, span), plan.horizon
        if len(weights) != math.prod(shape) or not np.isfinite(weights).all():
            raise ValueError(f"{ridge.path}.weights: expected finite numbers, {shape}, got {len(weights)}")
        if plan.count != features:
            raise ValueError(f"{stored.path}.plan: has {plan.count} features, but the model takes {features}")
        return cls(plan, Ridge(span, weights.reshape(shape).astype(np.float64)), model)

    def values(self, quantiles: np.ndarray, factor: float) -> np.ndarray:
        """``quantiles`` in the target's unit, the interval ``factor`` times as wide to either side of the median."""
        middle = quantiles[..., 1:2]
        return self.plan.numbers[self.plan.target].invert(middle + factor * (quantiles - middle))


def conformal_factor(quantiles: np.ndarray, target: np.ndarray) -> float:
    """How many times as wide intervals must be to cover :data:`COVERAGE` of ``target`` (...), both scaled.

    The quantile of that level of the scores ``|target - median| / (median's distance to the interval's end on that
    side)``: split conformal prediction (Romano et al. 2019, "Conformalized quantile regression", with scores that are
    ratios in the place of differences, so that a wide interval is widened by more).
    """
    low, middle, high = np.moveaxis(quantiles, -1, 0)
    above = target >= middle
    side = np.where(above, high - middle, middle - low)
    scores = np.abs(target - middle) / np.maximum(side, 1e-9)
    return float(np.quantile(scores, COVERAGE))


def inputs_of(plan: Plan, series: Series) -> tuple[Inputs, np.ndarray]:
    """What models see of ``series``, and its target (N,) scaled, gaps filled."""
    features, target = plan.features(series)
    return Inputs(plan, features, *phase(series.times, series.step)), target
