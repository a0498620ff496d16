"""The character language model: predicts every next byte of a text; measured in bits per character."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import attrs
import numpy as np

from .. import arrays, cells, dispatch, nn, parsing
from ..config import Config
from ..data.batch import Batch
from ..data.joined import Document, Joined
from ..data.lanes import Lanes
from ..data.text import SEPARATOR, VOCABULARY, Corpus, read
from ..data.utf8 import Writer, is_utf8
from ..nn.recurrent import INITS
from ..train.checkpoint import Checkpoint
from ..train.options import Options
from ..train.settings_fields import CellName, Choice, Integer, Path, Real, Text, field
from .base import CommandTask, Done, Shape
from .model_sizes import Sizes

_DIVERGED = 2.0  # times the loss of chance


@attrs.frozen
class Settings(Options):
    """The settings of ``gpulstm train text`` besides a run's options."""

    data: str | None = field(
        None,
        Path(),
        "Text to learn, or its name in gpulstm data list: shakespeare. [default: Python's standard library]",
        metavar="FILE|DIR|NAME",
        digested=True,
    )
    cell: str = field(
        "lstm", CellName(), "Cell of the recurrent layers, or my_module:my_cell.", metavar="NAME", fixed=True
    )
    embed: int = field(128, Integer(1), "Features a byte is embedded in.", fixed=True)
    hidden: int = field(320, Integer(1), "Units of every recurrent layer.", fixed=True)
    layers: int = field(1, Integer(1), "Recurrent layers.", fixed=True)
    init: str = field("recommended", Choice(INITS), "Initial parameters; uniform is torch's.", fixed=True)
    dropout: float = field(
        0.0, Real("[0, 1)"), "Share of activations dropped between layers and before the head.", fixed=True
    )
    seq_len: int = field(128, Integer(1), "Steps that gradients go back.", fixed=True)
    batch: int = field(32, Integer(1), "Sequences side by side.", fixed=True)
    validate_bytes: int = field(65536, Integer(1), "Bytes of held-out text that a validation looks at.")


@attrs.frozen(kw_only=True)
class SampleOptions:
    """The options of ``gpulstm sample``."""

    prompt: str = field("", Text(), "What the text begins with.")
    length: int = field(500, Integer(0), "Bytes to write.")
    temperature: float = field(0.8, Real("[0, inf)"), "0 takes the likeliest every time.")
    top_k: int | None = field(None, Integer(1), "Draw from the k likeliest bytes only.")
    seed: int | None = field(None, Integer(0), "The same seed gives the same text.")

    def __attrs_post_init__(self) -> None:
        if self.top_k is not None and self.top_k > VOCABULARY:
            raise ValueError(f"top_k: expected at most {VOCABULARY}, the number of bytes, got {self.top_k}")


def build(config: Mapping[str, Any], device: str = "cpu") -> nn.Sequential:
    """The model that ``config`` describes, on ``device``: ids (T, B) to logits (T, B, 256)."""
    rng = arrays.generator(config["seed"], "seed")
    embed, hidden, layers, dropout = (config[name] for name in ("embed", "hidden", "layers", "dropout"))
    return nn.Sequential(
        nn.Embedding(VOCABULARY, embed, seed=rng),
        nn.Recurrent(config["cell"], embed, hidden, layers, dropout=dropout, init=config["init"], seed=rng),
        nn.Dropout(dropout),
        nn.EveryStepHead(hidden, VOCABULARY, seed=rng),
    ).to(device)


def sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes of the model that :func:`build` makes of ``config``."""
    embed, hidden, layers = (config[name] for name in ("embed", "hidden", "layers"))
    return Sizes(
        Config(cells.get(config["cell"]), embed, hidden, layers),
        layer=1,
        others={"0.weight": (VOCABULARY, embed), "3.weight": (VOCABULARY, hidden), "3.bias": (VOCABULARY,)},
        fields={"embed": "0.weight", "hidden": "1.weight_ih_l0"},
    )


class TextTask(CommandTask):
    """A character language model of any text; it ends with held-out bits per character and a sample.

    ``settings`` say how it is trained, ``corpus`` on what.
    """

    name = "text"
    settings_class = Settings
    figures: ClassVar = ("bits_per_char",)
    uses: ClassVar = {"sample": SampleOptions}
    metric = "bits_per_char"
    chance = math.log(VOCABULARY)  # the loss of a model that takes every byte for equally likely

    def __init__(self, settings: Settings, corpus: Corpus) -> None:
        self.config = self.config_of(settings, corpus)
        device = dispatch.choose_device(settings.device)
        sizes(self.config).check_memory(settings, device)
        self.batches = Lanes(
            corpus.train,
            settings.batch,
            settings.seq_len,
            seed=settings.seed,
            separator=SEPARATOR,
            check=corpus.check,
        )
        self.model = build(self.config, device)
        self._corpus = corpus
        self._seed, self._validate_bytes = settings.seed, settings.validate_bytes

    @classmethod
    def read(cls, settings: Settings, progress: Done | None = None) -> Corpus:
        return read(settings.data, progress)

    @classmethod
    def expected_shapes(cls, config: parsing.Fields, found: Mapping[str, Shape]) -> dict[str, Shape]:
        for name in ("embed", "hidden", "layers"):
            config.integer(name, 1)
        config.real("dropout", "[0, 1)")
        config.text("data")
        CellName().check(config.text("cell"), f"{config.path}.cell")
        return sizes(config.value).check_found(found, config.path)

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> nn.Sequential:
        return build({**config, "init": "uniform", "seed": 0}, device)  # the quickest init

    def loss(self, output: Any, batch: Batch) -> tuple[Any, Any]:
        """Cross-entropy in nats a byte, and its gradient."""
        return nn.cross_entropy(output, batch["targets"])

    def notes(self) -> dict[str, Any]:
        return {"utf8": self.utf8}

    @property
    def utf8(self) -> bool:
        """Whether most of the held-out text is UTF-8: then so are samples."""
        sizes = [len(document) for document in self._corpus.held_out]
        return 2 * sum(size for size, valid in zip(sizes, self._utf8, strict=True) if valid) > sum(sizes)

    @cached_property
    def _utf8(self) -> list[bool]:
        self._corpus.check()
        return [is_utf8(document) for document in self._corpus.held_out]

    def validate(self) -> dict[str, float]:
        """Loss and bits per character on a sample of the held-out part."""
        return self._measure(limit=self._validate_bytes)

    def evaluate(self, progress: Done | None = None) -> dict[str, float]:
        """The same on the whole held-out part; ``progress`` is told how many bytes of how many were looked at."""
        return self._measure(progress=progress)

    def _measure(self, **options: Any) -> dict[str, float]:
        corpus = self._corpus
        return evaluate(self.model, corpus.held_out, utf8=self._utf8, check=corpus.check, **options)

    def diverged(self, training: float, held_out: float) -> str | None:
        """Why a run that ends with these losses has diverged, None if it has not.

        A model worse than chance in both has been thrown off by its training; one that is bad on held-out text alone
        knows the training text by heart, which is another fault.
        """
        if min(training, held_out) <= _DIVERGED * self.chance:
            return None
        return (
            f"training diverged: the loss is {training:.4g} on the last batch and {held_out:.4g} on held-out text, "
            f"expected less than the {self.chance:.4g} of chance; begin again with a lower learning rate"
        )

    def summary(self, quality: Mapping[str, float]) -> str:
        return f"{quality['bits_per_char']:.4f} bits per character on held-out text"

    def show(self) -> str:
        return f"--- sample\n{sample(self.model, rng=self._seed, utf8=self.utf8)}\n---"

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: SampleOptions, device: str) -> str:
        model = cls.restored(saved, device)
        stored = saved.record.get("settings")  # without "utf8" in checkpoints of older versions
        utf8 = isinstance(stored, dict) and stored.get("utf8") is True
        return options.prompt + _written(model, options, arrays.generator(options.seed), utf8)


def evaluate(
    model: Any,
    documents: Sequence[Document],
    *,
    limit: int | None = None,
    lanes: int = 64,
    window: int = 128,
    utf8: Sequence[bool] | None = None,
    check: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """How well ``model`` predicts ``documents``: {"loss": nats a byte, "bits_per_char": ...}.

    The documents, each between two separators, are cut into lanes that run side by side from a zero state,
    carried to their ends. With ``limit`` only the first ``limit / lanes`` bytes of every lane count: a sample
    spread evenly over the text. The bits of separators count, though they are no characters.

    ``utf8`` says of every document whether it is, where that is known already; ``check`` is called before documents
    are read; ``progress`` is told how many bytes of how many are done.
    """
    utf8 = [is_utf8(document) for document in documents] if utf8 is None else utf8
    ring = Joined(documents, SEPARATOR)
    size = ring.size  # bytes to predict; the separator before the first is that at the ring's end
    lanes = max(1, min(lanes, size // window))
    length = -(-size // lanes)
    steps = length if limit is None else min(length, max(1, limit // lanes))
    nats, tokens, characters = 0.0, 0, 0
    state = None
    for begin in range(0, steps, window):
        if check is not None:
            check()
        inputs = np.full((min(window, steps - begin), lanes), SEPARATOR[0], np.uint8)
        targets = np.full(inputs.shape, -1, np.int64)
        for lane in range(lanes):
            at = lane * length + begin
            count = min(len(inputs), size - at)  # the last lanes may be shorter
            if count > 0:
                codes = ring.take(at - 1, count + 1)
                inputs[:count, lane], targets[:count, lane] = codes[:-1], codes[1:]
                characters += ring.characters(at, count, utf8)
        logits, state = model(inputs, state)
        loss, _ = nn.cross_entropy(logits, targets, ignore_index=-1)
        count = int(np.count_nonzero(targets >= 0))
        nats, tokens = nats + float(loss) * count, tokens + count
        if progress is not None:
            progress(tokens, min(size, steps * lanes))
    return {"loss": nats / tokens, "bits_per_char": nats / math.log(2) / max(1, characters)}


def sample(
    model: Any,
    prompt: str = "",
    length: int = 400,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    rng: Any = None,
    utf8: bool = False,
) -> str:
    """``length`` bytes that ``model`` writes after ``prompt``, as text; separators become newlines.

    ``temperature`` divides the logits (0 takes the likeliest byte always), ``top_k`` leaves the k likeliest. With
    ``utf8`` only bytes are written that continue valid UTF-8, and a last character that is cut is left out; without,
    bytes that are not valid show as U+FFFD.

    Raises:
        ValueError, TypeError: a negative length or temperature, a top_k outside 1..256, or logits that are not finite.
    """
    options = SampleOptions(prompt=prompt, length=length, temperature=temperature, top_k=top_k)
    return _written(model, options, arrays.generator(rng), utf8)


def _written(model: Any, options: SampleOptions, rng: np.random.Generator, utf8: bool) -> str:
    """What ``model`` writes after the prompt; ``rng`` draws, the seed of ``options`` is not looked at."""
    ids = np.frombuffer(SEPARATOR + options.prompt.encode("utf-8", "surrogateescape"), np.uint8)
    logits, state = model(ids[:, None])
    written = bytearray()
    writer = Writer()
    while len(written) < options.length:
        last = arrays.on_host(logits[-1:, 0], "logits")[0].astype(np.float64)
        for codes in writer.impossible() if utf8 else ():
            last[codes] = -math.inf
        if not math.isfinite(last.max()):  # minus infinity is a byte that never comes
            raise ValueError("model: expected finite logits, got NaN or infinity: was its training diverging?")
        written.append(_draw(last, options.temperature, options.top_k, rng))
        writer.add(written[-1])
        logits, state = model(np.array([[written[-1]]], np.uint8), state)
    return bytes(written).replace(SEPARATOR, b"\n").decode("utf-8", errors="ignore" if utf8 else "replace")


def _draw(logits: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits[np.argpartition(logits, -top_k)[:-top_k]] = -math.inf
    with np.errstate(over="ignore"):  # a temperature near 0: minus infinity is meant
        weights = np.exp((logits - logits.max()) / temperature)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
