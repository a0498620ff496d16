"""Speech: a bidirectional LSTM says a symbol or nothing at every step; measured in symbols wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, ClassVar

import attrs
import numpy as np

from .. import arrays, checks, dispatch, nn, parsing
from ..cells import lstm
from ..config import Config
from ..data import audio, sentences
from ..data.batch import Batch
from ..data.speech import read, recordings
from ..data.speech_features import scaled, with_deltas
from ..data.strings import LONG, Digits
from ..data.utterances import Speech, Utterance, padded
from ..nn.recurrent import INITS
from ..train.checkpoint import Checkpoint
from ..train.ends import LONGEST
from ..train.options import Options
from ..train.settings_fields import Choice, Integer, Path, Real, field
from . import edits
from .base import CommandTask, Done, Shape
from .model_sizes import Sizes

EPOCHS = 50.0  # of a run without a limit
_SIDE_BY_SIDE = 50  # utterances that are looked at together
_NOTHING = "(nothing)"
_SHOWN = 6  # utterances at the end of a run, of those that are right and of those that are not
_DATA = (
    f"Sentences: {sentences.PROMPTS}, a folder with {sentences.TRANSCRIPTS}, or a TSV file of WAV files and texts. "
    "Digits: an NPZ file of X, y and lengths. [default: spoken digits]"
)


@attrs.frozen
class Settings(Options):
    """The settings of ``gpulstm train speech`` besides a run's options.

    Without ``patience`` a run goes to its limit: the CTC loss of what is held out rises while errors still get fewer.
    """

    default_limit: ClassVar = {"epochs": EPOCHS}

    data: str | None = field(None, Path(), _DATA, metavar="NAME|FILE|DIR", digested=True)
    hidden: int = field(96, Integer(1), "Units of every LSTM layer, in each direction.", fixed=True)
    layers: int = field(1, Integer(1), "LSTM layers.", fixed=True)
    init: str = field("recommended", Choice(INITS), "Initial parameters; uniform is torch's.", fixed=True)
    dropout: float = field(
        0.3, Real("[0, 1)"), "Share of activations dropped between layers and before the head.", fixed=True
    )
    noise: float = field(0.3, Real("[0, inf)"), "Deviation of noise on the scaled features in training.", fixed=True)
    batch: int = field(32, Integer(1), "Utterances side by side.", fixed=True)
    lr: float = field(5e-3, Real("(0, inf)"), "Learning rate.")
    epochs: float | None = field(None, Real(LONGEST), f"Train for so many passes over the data. [default: {EPOCHS:g}]")
    minutes: float | None = field(None, Real(LONGEST), "Train for so long (not reproducible bit for bit).")
    validate_every: int = field(100, Integer(0), "In steps; 0 for never.")


@attrs.frozen(kw_only=True)
class TranscribeOptions:
    """The options of ``gpulstm transcribe``."""

    data: str | None = field(None, Path(), "A WAV file, or files as in training.", metavar="FILE|DIR")


def build(config: Mapping[str, Any], device: str = "cpu") -> nn.Sequential:
    """The model that ``config`` describes, on ``device``: features (T, B, F) to logits (T, B, 1 + symbols)."""
    rng = arrays.generator(config["seed"], "seed")
    hidden, layers, dropout = (config[name] for name in ("hidden", "layers", "dropout"))
    features, init = len(config["mean"]), config["init"]
    return nn.Sequential(
        nn.LSTM(features, hidden, layers, dropout=dropout, bidirectional=True, init=init, seed=rng),
        nn.Dropout(dropout),
        nn.EveryStepHead(2 * hidden, 1 + len(config["symbols"]), seed=rng),
    ).to(device)


def sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes of the model that :func:`build` makes of ``config``."""
    hidden, classes = config["hidden"], 1 + len(config["symbols"])  # the first says nothing
    return Sizes(
        Config(lstm, len(config["mean"]), hidden, config["layers"], bidirectional=True),
        layer=0,
        others={"2.weight": (classes, 2 * hidden), "2.bias": (classes,)},
        fields={"hidden": "0.weight_hh_l0", "mean": "0.weight_ih_l0", "symbols": "2.bias"},
    )


class SpeechTask(CommandTask):
    """A recogniser of speech, connected digits or sentences (CTC); it ends with the share wrong, and transcripts.

    ``settings`` say how it is trained, ``data`` on what. Strings of digits are synthetic: recordings of one digit each,
    joined with gaps.
    """

    name = "speech"
    settings_class = Settings
    figures: ClassVar = ("error_rate", "exact")
    uses: ClassVar = {"transcribe": TranscribeOptions}
    metric = "error_rate"
    unit = "steps"
    reading_unit = "B"

    def __init__(self, settings: Settings, data: Speech) -> None:
        scale = {"mean": data.mean.tolist(), "deviation": data.deviation.tolist()}
        kept = {"symbols": list(data.symbols), "rate": data.rate, **scale}  # from the training part alone
        self.config = {**self.config_of(settings, data), **kept}
        device = dispatch.choose_device(settings.device)
        sizes(self.config).check_memory(settings, device)
        self.batches = data.batches(settings.batch, settings.seed, settings.noise)
        self.model = build(self.config, device)
        self._data = data
        self._validation = data.validation_utterances()
        self._shown: list[tuple[Utterance, str]] = []  # of the test part, and what was heard

    @classmethod
    def read(cls, settings: Settings, progress: Done | None = None) -> Speech:
        data = settings.data
        if data is None or str(data).endswith(".npz"):
            return Digits(read(data, progress))
        return sentences.read(data, progress)

    @classmethod
    def expected_shapes(cls, config: parsing.Fields, found: Mapping[str, Shape]) -> dict[str, Shape]:
        for name in ("hidden", "layers"):
            config.integer(name, 1)
        config.real("dropout", "[0, 1)")
        config.text("data")
        rate = config.integer("rate")
        symbols = checks.texts(config.take("symbols"), f"{config.path}.symbols")
        if not symbols or len(set(symbols)) < len(symbols):
            raise ValueError(f"{config.path}.symbols: expected different texts, got {checks.shown(symbols)}")
        mean, deviation = config.reals("mean"), config.reals("deviation", "(0, inf)")
        if len(mean) != len(deviation):
            raise ValueError(f"{config.path}.deviation: expected {len(mean)} numbers, as mean, got {len(deviation)}")
        parts = audio.STACKED * audio.BANDS if rate else 3  # coefficients and two slopes
        if len(mean) % parts:
            raise ValueError(f"{config.path}.mean: expected a multiple of {parts} numbers, got {len(mean)}")
        return sizes(config.value).check_found(found, config.path)

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> nn.Sequential:
        return build({**config, "init": "uniform", "seed": 0}, device)  # the quickest init

    def loss(self, output: Any, batch: Batch) -> tuple[Any, Any]:
        """The CTC loss in nats a digit, and its gradient."""
        targets, counts = (arrays.on_host(batch[name], name) for name in ("targets", "target_lengths"))
        return nn.ctc(output, targets, batch.lengths, counts)

    def validate(self) -> dict[str, float]:
        """Loss, share of symbols wrong, and share of utterances that are exact, on the validation part."""
        return self._measured(self._validation)[0]

    def evaluate(self, progress: Done | None = None) -> dict[str, float]:
        """The same on the test part, for digits on longer strings than any that is trained too."""
        quality: dict[str, float] = {}
        self._shown = []
        for end, utterances in self._data.test_utterances().items():
            measured, heard = self._measured(utterances)
            quality |= {f"{name}{end}": value for name, value in measured.items()}
            self._shown += heard
        return quality

    def _measured(self, utterances: Sequence[Utterance]) -> tuple[dict[str, float], list[tuple[Utterance, str]]]:
        """The figures of ``utterances``, and with each what was heard."""
        heard, loss = transcribed(self.model, utterances, self.config["symbols"])
        pairs = list(zip(utterances, heard, strict=True))
        return {"loss": loss, **edits.rates((said, utterance.text) for utterance, said in pairs)}, pairs

    def summary(self, quality: Mapping[str, float]) -> str:
        def found(end: str) -> tuple[str, str]:
            return f"{100 * quality[f'error_rate{end}']:.2f} %", f"{100 * quality[f'exact{end}']:.2f} %"

        wrong, exact = found("")
        if "error_rate_long" not in quality:
            return f"{wrong} of characters wrong (saying nothing: 100 %), {exact} of sentences exact"
        long = " and ".join(found("_long"))
        return (
            f"{wrong} of digits wrong (saying nothing: 100 %), {exact} of strings exact; of {LONG} digits, which are "
            f"longer than any trained, {long}; synthetic strings of recordings never trained"
        )

    def show(self) -> str:
        right = [(utterance.text, said) for utterance, said in self._shown if said == utterance.text]
        wrong = [(utterance.text, said) for utterance, said in self._shown if said != utterance.text]
        lines = []
        for title, pairs in (("right", right), ("wrong", wrong)):
            picked = pairs[:: max(1, len(pairs) // _SHOWN)][:_SHOWN]
            lines += [f"{title}  said {text}\n       heard {said or _NOTHING}" for text, said in picked]
        return "\n".join(lines)

    def picture(self, path: FilePath) -> None:
        """Draw the probability of each symbol at each step of an utterance of the test part."""
        from matplotlib.figure import Figure

        utterance, said = max(self._shown, key=lambda pair: len(pair[0].labels))
        logits = arrays.on_host(self.model(utterance.values[:, None])[0], "logits")[:, 0]
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        figure = Figure(figsize=(9, 1.5 + 0.15 * probabilities.shape[1]), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(probabilities.T, aspect="auto", origin="lower", interpolation="nearest", vmin=0, vmax=1)
        axes.set_yticks(range(probabilities.shape[1]), ["nothing", *self.config["symbols"]])
        axes.set_xlabel("step")
        axes.set_title(f"said {utterance.text[:60]}\nheard {said[:60]}")
        figure.colorbar(image, label="probability")
        figure.savefig(path)

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: TranscribeOptions, device: str) -> str:
        if options.data is None:
            raise ValueError("data: expected a file of recordings to transcribe, got none")
        model, config = cls.restored(saved, device), saved.record["config"]
        names, utterances = given(checks.path(options.data, "data"), config)
        heard, _ = transcribed(model, utterances, config["symbols"])
        lines = [f"{own}\t{said}" for own, said in zip(names, heard, strict=True)]
        if all(utterance.text for utterance in utterances):
            found = edits.rates((said, utterance.text) for utterance, said in zip(utterances, heard, strict=True))
            lines.append(f"{100 * found['error_rate']:.2f} % of symbols wrong, {100 * found['exact']:.2f} % exact")
        return "\n".join(lines)


def given(data: FilePath, config: Mapping[str, Any]) -> tuple[list[str], list[Utterance]]:
    """What is there to transcribe in ``data`` for the model of ``config``: names, and utterances.

    Raises:
        ValueError: files that cannot be read, or of other features than the model was trained on.
        OSError: a file cannot be read.
    """
    mean, deviation = np.array(config["mean"]), np.array(config["deviation"])
    nothing = np.zeros(0, np.int64)  # the loss is not asked for
    if config["rate"]:
        found = sentences.sentences(data, config["rate"])
        return [each.file for each in found], [
            Utterance(scaled(each.values, mean, deviation), nothing, each.text) for each in found
        ]
    digits = recordings(data, labelled=False)
    if (columns := digits.values[0].shape[1]) != len(mean) // 3:
        expected = f"{len(mean) // 3} columns, as the model was trained on"
        raise ValueError(f"data: {data}: X: expected {expected}, got {columns}")
    utterances = [
        Utterance(scaled(with_deltas(values), mean, deviation), nothing, str(digit) if digit >= 0 else "")
        for values, digit in zip(digits.values, digits.digits.tolist(), strict=True)
    ]
    return [str(number) for number in range(len(utterances))], utterances


def transcribed(model: Any, utterances: Sequence[Utterance], symbols: Sequence[str]) -> tuple[list[str], float]:
    """What ``model`` hears in each of ``utterances``, on the best path; and the mean CTC loss of their own labels.

    Those of like length run side by side.
    """
    order = np.argsort([len(utterance.values) for utterance in utterances], kind="stable")
    heard = [""] * len(utterances)
    total = 0.0
    for begin in range(0, len(order), _SIDE_BY_SIDE):
        which = order[begin : begin + _SIDE_BY_SIDE]
        values, steps, labels, counts = padded([utterances[number] for number in which])
        logits, _ = model.forward(values, None, steps)
        total += float(nn.ctc(logits, labels, steps, counts)[0]) * len(which)
        for number, said in zip(which, nn.greedy(logits, steps)[0], strict=True):
            heard[number] = "".join(symbols[label - 1] for label in said)
    return heard, total / len(utterances)
