"""Classification of time series: a bidirectional LSTM, the mean of its steps, and a class; measured in accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, ClassVar

import attrs
import numpy as np

from .. import arrays, checks, dispatch, nn, parsing
from ..cells import lstm
from ..config import Config
from ..data import labelled
from ..data.batch import Batch
from ..data.classify import NAMES, Classes, Part, part_of, read
from ..data.padded import Padded, padded
from ..nn.recurrent import INITS
from ..train.checkpoint import Checkpoint
from ..train.ends import LONGEST
from ..train.options import Options
from ..train.settings_fields import Choice, Integer, Path, Real, field
from . import confusion, logistic
from .base import CommandTask, Done, Shape
from .model_sizes import Sizes

EPOCHS = 100.0  # of a run without a limit
_SIDE_BY_SIDE = 64  # series that are looked at together
_DATA = f"{', '.join(NAMES)}, a .ts file, or a folder of CSV files in a subfolder a class. [default: {NAMES[0]}]"
_TEST = "What to test on, as --data. [default: a share of the data]"


@attrs.frozen
class Settings(Options):
    """The settings of ``gpulstm train classify`` besides a run's options."""

    default_limit: ClassVar = {"epochs": EPOCHS}

    data: str | None = field(None, Path(), _DATA, metavar="NAME|FILE|DIR", digested=True)
    test: str | None = field(None, Path(), _TEST, metavar="FILE|DIR")
    hidden: int = field(64, Integer(1), "Units of every LSTM layer, in each direction.", fixed=True)
    layers: int = field(1, Integer(1), "LSTM layers.", fixed=True)
    init: str = field("recommended", Choice(INITS), "Initial parameters; uniform is torch's.", fixed=True)
    dropout: float = field(
        0.3, Real("[0, 1)"), "Share of activations dropped between layers and before the head.", fixed=True
    )
    noise: float = field(0.4, Real("[0, inf)"), "Deviation of noise on the scaled values in training.", fixed=True)
    label_smoothing: float = field(0.1, Real("[0, 1]"), "Probability that classes share in a target.", fixed=True)
    batch: int = field(8, Integer(1), "Series side by side.", fixed=True)
    epochs: float | None = field(None, Real(LONGEST), f"Train for so many passes over the data. [default: {EPOCHS:g}]")
    minutes: float | None = field(None, Real(LONGEST), "Train for so long (not reproducible bit for bit).")
    validate_every: int = field(20, Integer(1), "In steps.")
    patience: int | None = field(100, Integer(1), "Stop after so many validations without a better loss.")


@attrs.frozen(kw_only=True)
class ClassifyOptions:
    """The options of ``gpulstm classify``."""

    data: str | None = field(None, Path(), "A .ts or .csv file, or a folder of CSV files.", metavar="FILE|DIR")


def build(config: Mapping[str, Any], device: str = "cpu") -> nn.Sequential:
    """The model that ``config`` describes, on ``device``: series (T, B, F) to logits (B, K)."""
    rng = arrays.generator(config["seed"], "seed")
    hidden, dropout = config["hidden"], config["dropout"]
    return nn.Sequential(
        nn.LSTM(
            len(config["mean"]),
            hidden,
            config["layers"],
            dropout=dropout,
            bidirectional=True,
            init=config["init"],
            seed=rng,
        ),
        nn.MeanOverTime(),
        nn.Dropout(dropout),
        nn.Linear(2 * hidden, len(config["classes"]), seed=rng),
    ).to(device)


def sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes of the model that :func:`build` makes of ``config``."""
    classes, hidden = len(config["classes"]), config["hidden"]
    return Sizes(
        Config(lstm, len(config["mean"]), hidden, config["layers"], bidirectional=True),
        layer=0,
        others={"3.weight": (classes, 2 * hidden), "3.bias": (classes,)},
        fields={"hidden": "0.weight_hh_l0", "mean": "0.weight_ih_l0", "classes": "3.bias"},
    )


class ClassifyTask(CommandTask):
    """A classifier of time series; it ends with accuracy, a linear model's beside it, and a confusion matrix.

    ``settings`` say how it is trained, ``data`` on what.
    """

    name = "classify"
    settings_class = Settings
    figures: ClassVar = ("accuracy", "accuracy_linear")
    uses: ClassVar = {"classify": ClassifyOptions}
    metric = "accuracy"
    unit = "time steps"

    def __init__(self, settings: Settings, data: Classes) -> None:
        scale = {"mean": list(data.mean), "deviation": list(data.deviation)}
        self.config = {**self.config_of(settings, data), "classes": list(data.names), **scale}
        self.chance = math.log(len(data.names))
        device = dispatch.choose_device(settings.device)
        sizes(self.config).check_memory(settings, device)
        self.batches = Padded(
            data.train.series, data.train.labels, settings.batch, seed=settings.seed, noise=settings.noise
        )
        self.model = build(self.config, device)
        self._data, self._smoothing = data, settings.label_smoothing
        self._confusion = np.zeros((len(data.names), len(data.names)), np.int64)

    @classmethod
    def read(cls, settings: Settings, progress: Done | None = None) -> Classes:
        return read(settings.data, settings.test, progress)

    @classmethod
    def expected_shapes(cls, config: parsing.Fields, found: Mapping[str, Shape]) -> dict[str, Shape]:
        for name in ("hidden", "layers"):
            config.integer(name, 1)
        config.real("dropout", "[0, 1)")
        config.text("data")
        classes = checks.texts(config.take("classes"), f"{config.path}.classes")
        if len(set(classes)) < max(2, len(classes)):
            raise ValueError(f"{config.path}.classes: expected two or more names, got {checks.shown(classes)}")
        mean, deviation = config.reals("mean"), config.reals("deviation", "(0, inf)")
        if len(mean) != len(deviation):
            raise ValueError(f"{config.path}.deviation: expected {len(mean)} numbers, as mean, got {len(deviation)}")
        return sizes(config.value).check_found(found, config.path)

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> nn.Sequential:
        return build({**config, "init": "uniform", "seed": 0}, device)  # the quickest init

    def loss(self, output: Any, batch: Batch) -> tuple[Any, Any]:
        """Cross-entropy in nats a series, and its gradient."""
        return nn.cross_entropy(output, batch["targets"], label_smoothing=self._smoothing)

    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation part."""
        return self._measured(self._data.validation)[0]

    def evaluate(self, progress: Done | None = None) -> dict[str, float]:
        """The same on the test part, and the accuracy of a linear model beside it."""
        data = self._data
        measured, answers = self._measured(data.test)
        self._confusion = confusion.matrix(data.test.labels, answers, len(data.names))
        known = (data.train.series, data.train.labels, data.validation.series, data.validation.labels)
        linear = logistic.predicted(*known, data.test.series, len(data.names))
        return measured | {"accuracy_linear": float(np.mean(linear == data.test.labels))}

    def _measured(self, part: Part) -> tuple[dict[str, float], np.ndarray]:
        """Loss and accuracy on ``part``, and the answers (N,)."""
        scores = logits(self.model, part)
        loss, _ = nn.cross_entropy(scores, part.labels, label_smoothing=self._smoothing)
        answers = scores.argmax(axis=1)
        return {"loss": float(loss), "accuracy": float(np.mean(answers == part.labels))}, answers

    def summary(self, quality: Mapping[str, float]) -> str:
        own, linear = quality["accuracy"], quality["accuracy_linear"]
        verdict = ", which is better here" if linear > own else ""
        of = f"accuracy {own:.4f} on {len(self._data.test)} test series"
        return f"{of} (a linear model: {linear:.4f}{verdict})"

    def show(self) -> str:
        return confusion.text(self._confusion, self._data.names)

    def picture(self, path: FilePath) -> None:
        """Draw the confusion matrix of the test part."""
        confusion.draw(self._confusion, self._data.names, path)

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: ClassifyOptions, device: str) -> str:
        if options.data is None:
            raise ValueError("data: expected a file or a folder with series to classify, got none")
        model = cls.restored(saved, device)
        config = saved.record["config"]
        names, mean, deviation = config["classes"], np.array(config["mean"]), np.array(config["deviation"])
        series = labelled.read(options.data)
        for each in series:
            if each.values.shape[1] != len(mean):
                raise ValueError(
                    f"{each.where}: expected {len(mean)} channels, as the model was trained on, got "
                    f"{each.values.shape[1]}"
                )
            if each.label is not None and each.label not in names:
                known = checks.shown(names)
                raise ValueError(f"{each.where}: the model knows no class {checks.shown(each.label)}; expected {known}")
        part = part_of(series, names, mean, deviation)
        scores = logits(model, part).astype(np.float64)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        answers = shares.argmax(axis=1)
        lines = [
            f"{each.where}\t{names[answer]}\t{share[answer]:.4f}"
            for each, answer, share in zip(series, answers, shares, strict=True)
        ]
        if count := int(np.count_nonzero(part.labels >= 0)):
            right = int(np.count_nonzero(answers == part.labels))
            lines.append(f"accuracy {right / count:.4f}: {right} of {count} right")
        return "\n".join(lines)


def logits(model: Any, part: Part) -> np.ndarray:
    """What ``model`` makes of each series of ``part``: (N, K), in its order; those of like length run side by side."""
    order = np.argsort([len(values) for values in part.series], kind="stable")
    pieces = []
    for begin in range(0, len(order), _SIDE_BY_SIDE):
        inputs, lengths = padded([part.series[number] for number in order[begin : begin + _SIDE_BY_SIDE]])
        pieces.append(arrays.on_host(model(inputs, lengths=lengths)[0], "logits"))
    scores = np.concatenate(pieces)
    return scores[np.argsort(order)]
