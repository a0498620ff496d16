"""The character language model: predicts every next byte of a text; measured in bits per character."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from .. import arrays, checks, dispatch, nn, ops, optim, parsing
from ..cells import LSTM
from ..data.joined import Document, Joined
from ..data.lanes import Lanes
from ..data.text import SEPARATOR, VOCABULARY, Corpus
from ..data.utf8 import Writer, is_utf8
from ..nn.recurrent import INITS
from ..train.checkpoint import MODEL, RECORD, Checkpoint, CheckpointError
from ..train.progress import FORMATS

NAME = "text"
_DIVERGED = 2.0  # times the loss of chance
SCHEDULES = ("constant", "cosine", "plateau")
# What a run cannot change when it is resumed: the model, what it sees, and whose state the checkpoint holds.
FIXED = ("data", "embed", "hidden", "layers", "init", "dropout", "batch", "seq_len", "optimizer", "seed")


@dataclass(frozen=True)
class Settings:
    """Everything that ``gpulstm train text`` can be told, with its defaults: the one place where they stand.

    Raises:
        ValueError, TypeError: a value out of its range or of another type.
    """

    data: str | None = None  # a file or directory; None for the standard library
    embed: int = 128
    hidden: int = 320
    layers: int = 1
    init: str = "recommended"
    dropout: float = 0.0
    batch: int = 32
    seq_len: int = 128
    optimizer: str = "adam"
    lr: float = 3e-3
    momentum: float | None = None  # None is the optimizer's own default, here and below
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.02
    clip: float = 1.0
    seed: int = 0
    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    validate_every: int = 200
    validate_bytes: int = 65536
    patience: int | None = None
    save_every: int = 100
    keep: int = 3
    metrics: tuple[str, ...] = ("jsonl",)
    device: str = "auto"
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.data is not None:
            checks.path(self.data, "data")
        if self.backend is not None:
            checks.text(self.backend, "backend")
        if not isinstance(self.metrics, (tuple, list)):
            raise TypeError(f"metrics: expected a tuple of names, got {checks.shown(self.metrics)}")
        for name in ("embed", "hidden", "layers", "batch", "seq_len", "validate_bytes", "keep"):
            checks.integer(getattr(self, name), name)
        for name in ("seed", "validate_every", "save_every"):
            checks.integer(getattr(self, name), name, 0)
        for name, interval in (
            ("dropout", "[0, 1)"),
            ("warmup", "[0, 1)"),
            ("clip", "(0, inf]"),
            ("lr", "(0, inf)"),
        ):
            checks.real(getattr(self, name), name, interval)
        for name, value, known in (
            ("optimizer", self.optimizer, tuple(optim.OPTIMIZERS)),
            ("schedule", self.schedule, SCHEDULES),
            ("init", self.init, INITS),
            ("device", self.device, ("auto", "cpu", "cuda")),
            *(("metrics", name, tuple(FORMATS)) for name in self.metrics),
        ):
            checks.choice(value, name, known)
        for name in ("patience", "steps"):
            if getattr(self, name) is not None:
                checks.integer(getattr(self, name), name)
        for name, interval in (
            ("epochs", "(0, inf)"),
            ("minutes", "(0, inf)"),
            ("momentum", "[0, 1)"),
            ("weight_decay", "[0, inf)"),
        ):
            if getattr(self, name) is not None:
                checks.real(getattr(self, name), name, interval)
        if len(self.limits()) > 1:
            raise ValueError(f"limit: expected one of steps, epochs and minutes, got {self.limits()}")
        object.__setattr__(self, "metrics", tuple(self.metrics))

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Settings:
        """Settings from what :meth:`as_json` gave, maybe by an older version."""
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in stored.items() if name in known}
        if given.get("clip", 0) is None:
            given["clip"] = math.inf
        return cls(**given)

    def as_json(self) -> dict[str, Any]:
        """A dict that JSON can hold, which knows no infinity: no clipping is None."""
        return asdict(self) | {"metrics": list(self.metrics), "clip": self.clip if self.clip < math.inf else None}

    def limits(self) -> dict[str, Any]:
        """The limits that are set; by default five minutes."""
        given = {name: getattr(self, name) for name in ("steps", "epochs", "minutes")}
        return {name: value for name, value in given.items() if value is not None} or {"minutes": 5.0}

    def make_optimizer(self) -> optim.Optimizer:
        """The optimizer named, with the options given."""
        options = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        given = {name: value for name, value in options.items() if value is not None}
        return optim.create(self.optimizer, lr=self.lr, **given)

    def make_schedule(self) -> optim.Schedule:
        """The schedule named, around ``lr``."""
        if self.schedule == "cosine":
            return optim.Cosine(self.lr, warmup=self.warmup)
        return optim.Plateau(self.lr) if self.schedule == "plateau" else optim.Constant(self.lr)


def build(config: Mapping[str, Any], device: str = "cpu") -> nn.Sequential:
    """The model that ``config`` describes, on ``device``: ids (T, B) to logits (T, B, 256)."""
    rng = arrays.generator(config["seed"], "seed")
    embed, hidden, layers, dropout = (config[name] for name in ("embed", "hidden", "layers", "dropout"))
    return nn.Sequential(
        nn.Embedding(VOCABULARY, embed, seed=rng),
        nn.LSTM(embed, hidden, layers, dropout=dropout, init=config["init"], seed=rng),
        nn.Dropout(dropout),
        nn.EveryStepHead(hidden, VOCABULARY, seed=rng),
    ).to(device)


def check_size(config: Mapping[str, Any], copies: int) -> None:
    """Refuse a model that this machine cannot hold, before anything of it is made.

    Args:
        config: as for :func:`build`.
        copies: arrays of a parameter's size that each parameter takes, itself among them.

    Raises:
        ValueError: its parameters alone take more than all memory.
    """
    embed, hidden, layers = (config[name] for name in ("embed", "hidden", "layers"))
    size = 4 * copies  # bytes of a float32 and its copies
    needed = ops.Config(LSTM, embed, hidden, layers).memory(size) + size * VOCABULARY * (embed + hidden + 1)
    checks.fits(needed, "hidden, layers, embed", (hidden, layers, embed))


def restored(saved: Checkpoint, device: str = "cpu") -> nn.Sequential:
    """The model of a checkpoint, on ``device``.

    Raises:
        CheckpointError: it is of another task, or its parameters are not those of the model that it describes.
    """
    # the quickest init: the checkpoint's parameters come next
    model = build(_model_config(saved) | {"init": "uniform", "seed": 0}, device)
    try:
        model.load_state_dict(saved.model)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{saved.path / MODEL}: {error}") from error
    return model


def settings_of(saved: Checkpoint) -> Settings:
    """The settings of a run that goes on.

    Raises:
        CheckpointError: it is of another task, or its settings are none, or of another model than its parameters.
    """
    config = _model_config(saved)
    try:
        fields = parsing.Fields(saved.record, "record").fields("settings")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{saved.path / RECORD}: {error}") from error
    try:
        stored = Settings.of(fields.value)
        for name in FIXED:
            expected, found = parsing.Fields(config, "record.config").take(name), getattr(stored, name)
            if name != "data" and found != expected:  # there a digest, here a path
                raise ValueError(f"{name}: {checks.shown(found)}, but record.config has {checks.shown(expected)}")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{saved.path / RECORD}: record.settings: {error}") from error
    return stored


def _model_config(saved: Checkpoint) -> dict[str, Any]:
    """The configuration in a checkpoint; its sizes are those of the parameters beside it, before anything is built."""
    record, shapes = saved.path / RECORD, {name: value.shape for name, value in saved.model.items()}
    try:
        config = parsing.Fields(saved.record, "record").fields("config")
        if (task := config.take("task")) != NAME:
            raise ValueError(f"record.config: task is {checks.shown(task)}, expected {NAME!r}")
        embed, hidden, layers = (config.integer(name, 1) for name in ("embed", "hidden", "layers"))
        config.real("dropout", "[0, 1)")
        config.text("data")
        for name, tensor, shape in (
            ("embed", "0.weight", (VOCABULARY, embed)),
            ("hidden", "1.weight_hh_l0", (4 * hidden, hidden)),
        ):
            if (found := shapes.get(tensor)) != shape:
                raise ValueError(f"record.config.{name}: expects {tensor} of shape {shape}, but {MODEL} has {found}")
        if layers != (count := sum(name.startswith("1.weight_hh_l") for name in shapes)):
            raise ValueError(f"record.config.layers: is {layers}, but {MODEL} has {count}")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{record}: {error}") from error
    expected = ops.Config(LSTM, embed, hidden, layers).shapes()
    expected = {"0.weight": (VOCABULARY, embed), **{f"1.{name}": shape for name, shape in expected.items()}}
    expected |= {"3.weight": (VOCABULARY, hidden), "3.bias": (VOCABULARY,)}
    if wrong := sorted(name for name in expected.keys() | shapes.keys() if shapes.get(name) != expected.get(name)):
        needed, given = (of.get(wrong[0], "no such tensor") for of in (expected, shapes))
        raise CheckpointError(f"{saved.path / MODEL}: {wrong[0]}: expected {needed}, got {given}")
    return config.value


class TextTask:
    """The task for a :class:`gpulstm.train.Trainer`: ``settings`` say how, ``corpus`` on what."""

    metric = "bits_per_char"
    chance = math.log(VOCABULARY)  # the loss of a model that takes every byte for equally likely

    def __init__(self, settings: Settings, corpus: Corpus) -> None:
        self.config = {
            "task": NAME,
            **{name: getattr(settings, name) for name in FIXED},
            "data": corpus.digest,
        }
        device = dispatch.choose_device(settings.device)
        slots = len(settings.make_optimizer().slots)
        check_size(self.config, copies=2 + slots if device == "cpu" else 1)  # two: the parameter and its gradient
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
        self._validate_bytes = settings.validate_bytes

    def loss(self, output: Any, targets: Any) -> tuple[float, Any]:
        """Cross-entropy in nats a byte, and its gradient."""
        return nn.cross_entropy(output, targets)

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

    def evaluate(self, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
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
    ``utf8`` only bytes come that go on with valid UTF-8, and a character that the end cuts is left out; without, what
    is not valid shows as U+FFFD.

    Raises:
        ValueError, TypeError: a negative length or temperature, a top_k outside 1..256, or logits that are not finite.
    """
    checks.integer(length, "length", 0)
    checks.real(temperature, "temperature", "[0, inf)")
    if top_k is not None and checks.integer(top_k, "top_k") > VOCABULARY:
        raise ValueError(f"top_k: expected at most {VOCABULARY}, the number of bytes, got {top_k}")
    rng = arrays.generator(rng)
    ids = np.frombuffer(SEPARATOR + prompt.encode("utf-8", "surrogateescape"), np.uint8)
    logits, state = model(ids[:, None])
    written = bytearray()
    writer = Writer()
    while len(written) < length:
        last = arrays.on_host(logits[-1:, 0], "logits")[0].astype(np.float64)
        for codes in writer.impossible() if utf8 else ():
            last[codes] = -math.inf
        if not math.isfinite(last.max()):  # minus infinity is a byte that never comes
            raise ValueError("model: expected finite logits, got NaN or infinity: was its training diverging?")
        written.append(_draw(last, temperature, top_k, rng))
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
