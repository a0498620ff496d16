"""The character language model: predicts every next byte of a text; measured in bits per character."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from .. import arrays, checks, dispatch, nn, ops, optim, parsing
from ..cells import LSTM
from ..data.lanes import Lanes
from ..data.text import SEPARATOR, VOCABULARY, Corpus, character_starts
from ..nn.rnn import INITS
from ..train.checkpoint import MODEL, RECORD, Checkpoint, CheckpointError
from ..train.progress import FORMATS

NAME = "text"
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
        for name in ("data", "backend"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise TypeError(f"{name}: expected a string, got {checks.shown(getattr(self, name))}")
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
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
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
        return cls(**{name: value for name, value in stored.items() if name in known})

    def as_json(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return asdict(self) | {"metrics": list(self.metrics)}

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
    rng = np.random.default_rng(config["seed"])
    embed, hidden, layers, dropout = (config[name] for name in ("embed", "hidden", "layers", "dropout"))
    return nn.Sequential(
        nn.Embedding(VOCABULARY, embed, seed=rng),
        nn.LSTM(embed, hidden, layers, dropout=dropout, init=config["init"], seed=rng),
        nn.Dropout(dropout),
        nn.EveryStepHead(hidden, VOCABULARY, seed=rng),
    ).to(device)


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
        stored = Settings.of(parsing.Fields(saved.record, "record").fields("settings").value)
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
        name = wrong[0]
        raise CheckpointError(
            f"{saved.path / MODEL}: {name}: expected shape {expected.get(name)}, got {shapes.get(name)}"
        )
    return config.value


class TextTask:
    """The task for a :class:`gpulstm.train.Trainer`: ``settings`` say how, ``corpus`` on what."""

    metric = "bits_per_char"

    def __init__(self, settings: Settings, corpus: Corpus) -> None:
        self.config = {
            "task": NAME,
            **{name: getattr(settings, name) for name in FIXED},
            "data": corpus.digest,
        }
        self.batches = Lanes(corpus.train, settings.batch, settings.seq_len, seed=settings.seed, separator=SEPARATOR)
        self.model = build(self.config, dispatch.choose_device(settings.device))
        self._corpus = corpus
        self._validate_bytes = settings.validate_bytes

    def loss(self, output: Any, targets: Any) -> tuple[float, Any]:
        """Cross-entropy in nats a byte, and its gradient."""
        return nn.cross_entropy(output, targets)

    def validate(self) -> dict[str, float]:
        """Loss and bits per character on a sample of the held-out part."""
        return evaluate(self.model, self._corpus.held_out, limit=self._validate_bytes)

    def evaluate(self) -> dict[str, float]:
        """The same on the whole held-out part."""
        return evaluate(self.model, self._corpus.held_out)


def evaluate(
    model: Any, documents: Sequence[bytes], *, limit: int | None = None, lanes: int = 64, window: int = 128
) -> dict[str, float]:
    """How well ``model`` predicts ``documents``: {"loss": nats a byte, "bits_per_char": ...}.

    The documents, each between two separators, are cut into lanes that run side by side from a zero state,
    carried to their ends. With ``limit`` only the first ``limit / lanes`` bytes of every lane count: a sample
    spread evenly over the text. The bits of separators count, though they are no characters.
    """
    stream = np.frombuffer(SEPARATOR + b"".join(document + SEPARATOR for document in documents), np.uint8)
    is_start = np.concatenate(
        [[False], *(part for document in documents for part in (character_starts(document), [False]))]
    )
    size = len(stream) - 1
    lanes = max(1, min(lanes, size // window))
    length = -(-size // lanes)
    at = np.arange(lanes) * length + np.arange(length)[:, None]  # (length, lanes): the position of every input
    if limit is not None:
        at = at[: max(1, limit // lanes)]
    nats, tokens, characters = 0.0, 0, 0
    state = None
    for begin in range(0, len(at), window):
        here = at[begin : begin + window]
        counted = here < size  # the last lane may be shorter
        following = np.where(counted, here + 1, 0)
        logits, state = model(stream[np.where(counted, here, 0)], state)
        targets = np.where(counted, stream[following].astype(np.int64), -1)
        loss, _ = nn.cross_entropy(logits, targets, ignore_index=-1)
        count = int(np.count_nonzero(counted))
        nats, tokens = nats + float(loss) * count, tokens + count
        characters += int(np.count_nonzero(is_start[following]))
    return {"loss": nats / tokens, "bits_per_char": nats / math.log(2) / max(1, characters)}


def sample(
    model: Any,
    prompt: str = "",
    length: int = 400,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    rng: Any = None,
) -> str:
    """``length`` bytes that ``model`` writes after ``prompt``, as text; separators become newlines.

    ``temperature`` divides the logits (0 takes the likeliest byte always), ``top_k`` leaves the k likeliest.

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
    while len(written) < length:
        last = arrays.on_host(logits[-1:, 0], "logits")[0]
        if not math.isfinite(last.max()):  # minus infinity is a byte that never comes
            raise ValueError("model: expected finite logits, got NaN or infinity: was its training diverging?")
        written.append(_draw(last.astype(np.float64), temperature, top_k, rng))
        logits, state = model(np.array([[written[-1]]], np.uint8), state)
    return bytes(written).replace(SEPARATOR, b"\n").decode("utf-8", errors="replace")


def _draw(logits: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits[np.argpartition(logits, -top_k)[:-top_k]] = -math.inf
    with np.errstate(over="ignore"):  # a temperature near 0: minus infinity is meant
        weights = np.exp((logits - logits.max()) / temperature)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
