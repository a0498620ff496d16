"""Connected spoken digits: a bidirectional LSTM says a digit or nothing at every step; measured in digits wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, ClassVar

import attrs
import numpy as np

from .. import arrays, checks, dispatch, nn, parsing
from ..cells import lstm
from ..config import Config
from ..data.batch import Batch
from ..data.speech import DIGITS, Spoken, read, recordings
from ..data.speech_features import scaled, with_deltas
from ..data.strings import COUNTS, String, Strings, fixed, padded
from ..nn.recurrent import INITS
from ..train.checkpoint import Checkpoint
from ..train.ends import LONGEST
from ..train.options import Options
from ..train.settings_fields import Choice, Integer, Path, Real, field
from . import edits
from .base import CommandTask, Done, Shape
from .sizes import Sizes

EPOCHS = 50.0  # of a run without a limit
LONG = 10  # digits in strings that are longer than any that is trained
_CLASSES = 1 + DIGITS  # the first says nothing
_ROUNDS = {"validation": 2, "test": 5, "long": 5}  # how often a recording is in the strings that are measured on
_SIDE_BY_SIDE = 50  # strings that are looked at together
_SHOWN = 6  # strings at the end of a run, of those that are right and of those that are not


@attrs.frozen
class Settings(Options):
    """The settings of ``gpulstm train speech`` besides a run's options."""

    data: str | None = field(
        None, Path(), "NPZ file of recordings X, y and lengths. [default: spoken digits]", metavar="FILE", digested=True
    )
    hidden: int = field(96, Integer(1), "Units of every LSTM layer, in each direction.", fixed=True)
    layers: int = field(1, Integer(1), "LSTM layers.", fixed=True)
    init: str = field("recommended", Choice(INITS), "Initial parameters; uniform is torch's.", fixed=True)
    dropout: float = field(
        0.3, Real("[0, 1)"), "Share of activations dropped between layers and before the head.", fixed=True
    )
    noise: float = field(0.3, Real("[0, inf)"), "Deviation of noise on the scaled features in training.", fixed=True)
    batch: int = field(32, Integer(1), "Strings side by side.", fixed=True)
    lr: float = field(5e-3, Real("(0, inf)"), "Learning rate.")
    epochs: float | None = field(None, Real(LONGEST), f"Train for so many passes over the data. [default: {EPOCHS:g}]")
    minutes: float | None = field(None, Real(LONGEST), "Train for so long (not reproducible bit for bit).")
    validate_every: int = field(100, Integer(0), "In steps; 0 for never.")
    patience: int | None = field(5, Integer(1), "Stop after so many validations without a better loss.")

    def limits(self) -> dict[str, Any]:
        """The limits that are set; by default :data:`EPOCHS`."""
        given = (self.steps, self.epochs, self.minutes)
        return {"epochs": EPOCHS} if given == (None, None, None) else super().limits()


@attrs.frozen(kw_only=True)
class TranscribeOptions:
    """The options of ``gpulstm transcribe``."""

    data: str | None = field(None, Path(), "NPZ file of recordings X and lengths, maybe y.", metavar="FILE")


def build(config: Mapping[str, Any], device: str = "cpu") -> nn.Sequential:
    """The model that ``config`` describes, on ``device``: features (T, B, F) to logits (T, B, 11)."""
    rng = arrays.generator(config["seed"], "seed")
    hidden, layers, dropout = (config[name] for name in ("hidden", "layers", "dropout"))
    features, init = len(config["mean"]), config["init"]
    return nn.Sequential(
        nn.LSTM(features, hidden, layers, dropout=dropout, bidirectional=True, init=init, seed=rng),
        nn.Dropout(dropout),
        nn.EveryStepHead(2 * hidden, _CLASSES, seed=rng),
    ).to(device)


def sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes of the model that :func:`build` makes of ``config``."""
    hidden = config["hidden"]
    return Sizes(
        Config(lstm, len(config["mean"]), hidden, config["layers"], bidirectional=True),
        layer=0,
        others={"2.weight": (_CLASSES, 2 * hidden), "2.bias": (_CLASSES,)},
        fields={"hidden": "0.weight_hh_l0", "mean": "0.weight_ih_l0"},
    )


class SpeechTask(CommandTask):
    """A recogniser of connected spoken digits (CTC); it ends with the share of digits wrong, and transcripts.

    ``settings`` say how it is trained, ``data`` on what. The strings are synthetic: recordings of one digit each,
    joined with gaps.
    """

    name = "speech"
    settings_class = Settings
    figures: ClassVar = ("error_rate", "exact")
    uses: ClassVar = {"transcribe": TranscribeOptions}
    metric = "error_rate"
    unit = "steps"
    reading_unit = "B"

    def __init__(self, settings: Settings, data: Spoken) -> None:
        scale = {"mean": data.mean.tolist(), "deviation": data.deviation.tolist()}
        self.config = {**self.config_of(settings, data), **scale}
        device = dispatch.choose_device(settings.device)
        slots = len(settings.make_optimizer().slots)
        # on the CPU two and the optimizer's: the parameter and its gradient
        sizes(self.config).check_memory(copies=2 + slots if device == "cpu" else 1)
        self.batches = Strings(data, settings.batch, seed=settings.seed, noise=settings.noise)
        self.model = build(self.config, device)
        self._data = data
        self._validation = fixed(data.validation, COUNTS, _ROUNDS["validation"], data)
        self._shown: list[tuple[String, np.ndarray]] = []  # strings of the test part, and what was heard

    @classmethod
    def read(cls, settings: Settings, progress: Done | None = None) -> Spoken:
        return read(settings.data, progress)

    @classmethod
    def expected_shapes(cls, config: parsing.Fields, found: Mapping[str, Shape]) -> dict[str, Shape]:
        for name in ("hidden", "layers"):
            config.integer(name, 1)
        config.real("dropout", "[0, 1)")
        config.text("data")
        for name, interval in (("mean", "(-inf, inf)"), ("deviation", "(0, inf)")):
            values = config.take(name)
            if not isinstance(values, list) or not values or len(values) % 3 or len(values) != len(config.take("mean")):
                shown = checks.shown(values)
                raise ValueError(f"{config.path}.{name}: expected three numbers a coefficient, got {shown}")
            for value in values:
                checks.real(value, f"{config.path}.{name}", interval)
        expected = sizes(config.value)
        expected.check_found(found, config.path)
        return expected.shapes()

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> nn.Sequential:
        return build({**config, "init": "uniform", "seed": 0}, device)  # the quickest init

    def loss(self, output: Any, batch: Batch) -> tuple[Any, Any]:
        """The CTC loss in nats a digit, and its gradient."""
        targets, counts = (arrays.on_host(batch[name], name) for name in ("targets", "target_lengths"))
        return nn.ctc(output, targets, batch.lengths, counts)

    def validate(self) -> dict[str, float]:
        """Loss, share of digits wrong, and share of strings that are exact, on strings of the validation part."""
        return self._measured(self._validation)[0]

    def evaluate(self, progress: Done | None = None) -> dict[str, float]:
        """The same on strings of the test part, and on longer ones than any that is trained."""
        data = self._data
        quality, self._shown = self._measured(fixed(data.test, COUNTS, _ROUNDS["test"], data))
        long, heard = self._measured(fixed(data.test, (LONG,), _ROUNDS["long"], data))
        self._shown += heard
        return quality | {"error_rate_long": long["error_rate"], "exact_long": long["exact"]}

    def _measured(self, strings: Sequence[String]) -> tuple[dict[str, float], list[tuple[String, np.ndarray]]]:
        """The figures of ``strings``, and with each what was heard."""
        heard, loss = transcribed(self.model, strings)
        pairs = list(zip(strings, heard, strict=True))
        return {"loss": loss, **edits.rates((said, string.labels) for string, said in pairs)}, pairs

    def summary(self, quality: Mapping[str, float]) -> str:
        wrong, exact = (
            [f"{100 * quality[name + end]:.2f} %" for end in ("", "_long")] for name in ("error_rate", "exact")
        )
        return (
            f"{wrong[0]} of digits wrong (saying nothing: 100 %), {exact[0]} of strings exact; of {LONG} digits, which "
            f"are longer than any trained, {wrong[1]} and {exact[1]}; synthetic strings of recordings never trained"
        )

    def show(self) -> str:
        right = [pair for pair in self._shown if np.array_equal(pair[1], pair[0].labels)]
        wrong = [pair for pair in self._shown if not np.array_equal(pair[1], pair[0].labels)]
        lines = []
        for title, pairs in (("right", right), ("wrong", wrong)):
            picked = pairs[:: max(1, len(pairs) // _SHOWN)][:_SHOWN]
            lines += [f"{title}  said {_digits(string.labels)}  heard {_digits(said)}" for string, said in picked]
        return "\n".join(lines)

    def picture(self, path: FilePath) -> None:
        """Draw the probability of each digit at each step of a string of the test part."""
        from matplotlib.figure import Figure

        string, said = max(self._shown, key=lambda pair: len(pair[0].labels))
        logits = arrays.on_host(self.model(string.values[:, None])[0], "logits")[:, 0]
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        figure = Figure(figsize=(9, 3), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(probabilities.T, aspect="auto", origin="lower", interpolation="nearest", vmin=0, vmax=1)
        axes.set_yticks(range(_CLASSES), ["nothing", *map(str, range(DIGITS))])
        axes.set_xlabel("step")
        axes.set_title(f"said {_digits(string.labels)}, heard {_digits(said)}")
        figure.colorbar(image, label="probability")
        figure.savefig(path)

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: TranscribeOptions, device: str) -> str:
        if options.data is None:
            raise ValueError("data: expected a file of recordings to transcribe, got none")
        model, config = cls.restored(saved, device), saved.record["config"]
        mean, deviation = np.array(config["mean"]), np.array(config["deviation"])
        given = recordings(options.data, labelled=False)
        if (columns := given.values[0].shape[1]) != len(mean) // 3:
            expected = f"{len(mean) // 3} columns, as the model was trained on"
            raise ValueError(f"data: {options.data}: X: expected {expected}, got {columns}")
        known = given.digits >= 0
        strings = [
            String(scaled(with_deltas(values), mean, deviation), np.array([digit + 1])[: int(digit >= 0)])
            for values, digit in zip(given.values, given.digits.tolist(), strict=True)
        ]
        heard, _ = transcribed(model, strings)
        lines = [f"{number}\t{_digits(said)}" for number, said in enumerate(heard)]
        if known.all():
            found = edits.rates((said, string.labels) for string, said in zip(strings, heard, strict=True))
            lines.append(f"{100 * found['error_rate']:.2f} % of digits wrong, {100 * found['exact']:.2f} % exact")
        return "\n".join(lines)


def transcribed(model: Any, strings: Sequence[String]) -> tuple[list[np.ndarray], float]:
    """What ``model`` hears in each of ``strings``, labels on the best path; and the mean CTC loss of their own labels.

    Those of like length run side by side.
    """
    order = np.argsort([len(string.values) for string in strings], kind="stable")
    heard: list[np.ndarray] = [np.zeros(0, np.int64)] * len(strings)
    total = 0.0
    for begin in range(0, len(order), _SIDE_BY_SIDE):
        which = order[begin : begin + _SIDE_BY_SIDE]
        values, steps, labels, counts = padded([strings[number] for number in which])
        logits, _ = model.forward(values, None, steps)
        total += float(nn.ctc(logits, labels, steps, counts)[0]) * len(which)
        for number, said in zip(which, nn.greedy(logits, steps)[0], strict=True):
            heard[number] = said
    return heard, total / len(strings)


def _digits(labels: np.ndarray) -> str:
    """Labels as people write the digits."""
    return "".join(str(label - 1) for label in labels) or "(nothing)"
