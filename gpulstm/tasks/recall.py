"""Associative recall: which value was paired with a key? An LSTM that attends to its own past, beside a plain one.

Both are trained on the same batches for the same steps, as one torch module. They share nothing but the clipping of
their gradients, which Adam, that does not follow the size of a gradient, hardly notices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np

from .. import checks, nn, parsing
from ..cells import lstm
from ..config import Config
from ..data.batch import Batch
from ..data.recall import KEYS, TOKENS, VALUES, Drawn, HeldOut, Sequences, held_out, parsed
from ..io.common import require
from ..train.checkpoint import Checkpoint
from ..train.ends import LONGEST
from ..train.options import Options, Steps
from ..train.settings_fields import Integer, Real, Text, field
from .base import CommandTask, Done, Shape

_STEPS = 400
_AT_ONCE = 512  # sequences that are measured side by side
_SHOWN, _PICTURED = 3, 12  # sequences at the end of a run
_WRITTEN = 16  # pairs of a sequence that are


@attrs.frozen
class Settings(Options):
    """The settings of ``gpulstm train recall`` besides a run's options."""

    default_limit: ClassVar = {"steps": _STEPS}

    pairs: int = field(16, Integer(1), f"Pairs in a sequence, {len(KEYS)} at most.", fixed=True)
    embed: int = field(64, Integer(1), "Features a symbol is embedded in.", fixed=True)
    hidden: int = field(128, Integer(1), "Units of each LSTM.", fixed=True)
    batch: int = field(64, Integer(1), "Sequences side by side.", fixed=True)
    steps: int | None = field(None, Steps(), f"Train for so many updates. [default: {_STEPS}]")
    minutes: float | None = field(None, Real(LONGEST), "Train for so long (not reproducible bit for bit).")
    validate_every: int = field(100, Integer(0), "In steps; 0 for never.")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.pairs > len(KEYS):
            raise ValueError(f"pairs: expected at most {len(KEYS)}, as there are keys, got {self.pairs}")
        if self.device == "cuda":
            raise ValueError("device: expected 'cpu' for recall, whose model is a torch module, got 'cuda'")


@attrs.frozen(kw_only=True)
class RecallOptions:
    """The options of ``gpulstm recall``."""

    text: str = field("a=3 b=5 c=1 b?", Text(), "Pairs, and a query for one of their keys.")


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """The shape of every parameter of the model that ``config`` describes, by name."""
    embed, hidden = config["embed"], config["hidden"]
    recurrent = Config(lstm, embed, hidden).shapes()
    found: dict[str, Shape] = {"attentive.match.weight": (hidden, hidden)}
    for name, read in (("attentive", 2 * hidden), ("plain", hidden)):
        found |= {f"{name}.embedding.weight": (len(TOKENS), embed)}
        found |= {f"{name}.lstm.{own}": shape for own, shape in recurrent.items()}
        found |= {f"{name}.head.weight": (len(VALUES), read), f"{name}.head.bias": (len(VALUES),)}
    return found


class RecallTask(CommandTask):
    """Recalls the value of a key: an LSTM with attention over its own past, beside a plain one.

    ``settings`` say how both are trained, ``data`` is what they are measured on.
    """

    name = "recall"
    settings_class = Settings
    figures: ClassVar = ("accuracy", "accuracy_plain")
    reading_unit: ClassVar = " sequences"
    uses: ClassVar = {"recall": RecallOptions}
    metric = "accuracy"
    chance = math.log(len(VALUES))

    def __init__(self, settings: Settings, data: HeldOut) -> None:
        self.config = self.config_of(settings, data) | {"sequences": data.digest}
        copies = 2 + len(settings.make_optimizer().slots)  # of a parameter: itself, its gradient, the optimizer's
        size = sum(map(math.prod, shapes(self.config).values()))
        checks.fits(4 * copies * size, "embed and hidden", (settings.embed, settings.hidden))
        self.batches = Drawn(settings.seed, settings.batch, settings.pairs)
        self.model = _build(self.config)
        self._data = data

    @classmethod
    def read(cls, settings: Settings, progress: Done | None = None) -> HeldOut:
        return held_out(settings.seed, settings.pairs)

    @classmethod
    def expected_shapes(cls, config: parsing.Fields, found: Mapping[str, Shape]) -> dict[str, Shape]:
        for name in ("embed", "hidden", "pairs"):
            config.integer(name, 1)
        return shapes(config.value)

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> Any:
        return _build({**config, "seed": 0})  # whatever a file says, since parameters are loaded next

    def loss(self, output: Any, batch: Batch) -> tuple[Any, Any]:
        """Cross-entropy in nats an answer of the model that attends, and the gradients of both."""
        (loss, gradient), (_, plain) = (nn.cross_entropy(logits, batch["targets"]) for logits in output)
        return loss, (gradient, plain)

    def validate(self) -> dict[str, float]:
        """Loss and accuracy of the model that attends, on sequences that are for validation alone."""
        found = self._measure(self._data.validation)
        return {name: found[name] for name in ("loss", "accuracy")}

    def evaluate(self, progress: Done | None = None) -> dict[str, float]:
        """Loss and accuracy of the model that attends, and the accuracy of the plain one, on the test sequences."""
        return self._measure(self._data.test, progress)

    def _measure(self, sequences: Sequences, progress: Done | None = None) -> dict[str, float]:
        count, right, nats = sequences.answers.size, np.zeros(2, int), 0.0
        for begin in range(0, count, _AT_ONCE):
            part = slice(begin, min(begin + _AT_ONCE, count))
            answers = sequences.answers[part]
            logits = self.model(sequences.tokens[:, part])
            nats += float(nn.cross_entropy(logits[0], answers)[0]) * answers.size
            right += [np.count_nonzero(own.argmax(1) == answers) for own in logits]
            if progress is not None:
                progress(part.stop, count)
        accuracy, plain = right / count
        return {"loss": nats / count, "accuracy": float(accuracy), "accuracy_plain": float(plain)}

    def summary(self, quality: Mapping[str, float]) -> str:
        accuracy, plain = (quality[name] for name in self.figures)
        text = (
            f"{accuracy:.1%} of new sequences answered right, {plain:.1%} by the plain LSTM "
            f"(chance {1 / len(VALUES):.1%}; synthetic data)"
        )
        return text if accuracy > plain else f"{text}; the plain one is no worse"

    def show(self) -> str:
        return "\n".join(answer(self.model, self._data.test.tokens[:, [number]]) for number in range(_SHOWN))

    def picture(self, path: Path) -> None:
        """Where attention looked in some of the test sequences: a row a sequence, a column a pair; to ``path``."""
        from matplotlib.figure import Figure

        test = self._data.test
        count = min(_PICTURED, test.answers.size)
        _, weights = look(self.model, test.tokens[:, :count])
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(weights[::2].T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axes.scatter(test.asked[:count], range(count), marker="o", s=60, facecolors="none", edgecolors="tab:red")
        axes.set_yticks(range(count), [test.text(number).split()[-1] for number in range(count)])
        axes.set(xlabel="pair", ylabel="query", title="Attention to the value of each pair; the pair asked for in red")
        figure.colorbar(image, ax=axes)
        figure.savefig(path)

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: RecallOptions, device: str) -> str:
        tokens = parsed(options.text)
        return answer(cls.restored(saved, device), tokens)


def _build(config: Mapping[str, Any]) -> Any:
    require("torch", "torch")
    from .recall_model import build

    return build(config)


def look(model: Any, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the model that attends makes of ``tokens`` (2N + 1, B): logits (B, 8), and how much it reads of each state
    from the second on (2N, B): those at even places are at a pair's value."""
    import torch

    with torch.no_grad():
        logits, weights = model.module.attentive.look(torch.from_numpy(np.ascontiguousarray(tokens)))
    return logits.numpy(), weights.numpy()


def answer(model: Any, tokens: np.ndarray) -> str:
    """One sequence (2N + 1, 1), what each model answers, and the two pairs that attention looked at most."""
    logits, weights = look(model, tokens)
    plain = model(tokens)[1]
    *pairs, query = Sequences(tokens, np.zeros(1, int), np.zeros(1, int)).text(0).split()
    right = next(pair[-1] for pair in pairs if pair[0] == query[0])
    shares = weights[::2, 0]
    looked = ", ".join(f"{pairs[place]} {shares[place]:.0%}" for place in np.argsort(-shares, kind="stable")[:2])
    given = [VALUES[int(own[0].argmax())] for own in (logits, plain)]
    text = " ".join(pairs if len(pairs) <= _WRITTEN else [*pairs[: _WRITTEN // 2], f"… ({len(pairs)} pairs)"])
    return f"{text} {query} {given[0]} (right: {right}, the plain LSTM: {given[1]}; looked at {looked})"
