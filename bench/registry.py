"""What is timed and who is timed: cases, modes and providers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from gpulstm_kernels.cells import Cell

from .networks import config

MODES = ("inference", "training")
SUBJECT = "gpulstm"  # the provider that the others are compared with
BASELINE = "baseline"  # gpulstm again, with what Case.baseline says


ITEMSIZE = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Case:
    """A layer's call, as ``gpulstm.explain`` prints it and ``--case`` takes it.

    Attributes:
        batch, steps, hidden: B, T, H.
        dtype: of everything.
        inputs: I; 0 for I = H.
        cell: the name of one that :mod:`gpulstm.cells` or :mod:`bench.networks` has.
        layers, directions: L, D.
        projection: features that h is projected to; 0 for none.
        bias: 1 with biases, 0 without.
        heads: blocks on the diagonal of the recurrent weights, N.
        resets: of how many steps in a hundred a sequence begins anew.
    """

    batch: int
    steps: int
    hidden: int
    dtype: str = "float32"
    inputs: int = 0
    cell: str = "lstm"
    layers: int = 1
    directions: int = 1
    projection: int = 0
    bias: int = 1
    heads: int = 1
    resets: int = 0

    @property
    def label(self) -> str:
        """For tables, which say the dtype themselves."""
        return f"({replace(self, dtype='float32').text})"

    @property
    def text(self) -> str:
        """What :func:`parse_case` takes back."""
        given = {name: getattr(self, name) for name in _FEATURES}
        features = [f"{name}={value}" for name, value in given.items() if value != _FEATURES[name]]
        return ",".join([str(self.batch), str(self.steps), str(self.hidden), *features])

    @property
    def is_plain(self) -> bool:
        """One layer of one direction with biases and nothing further, which everybody has who has the cell."""
        features = self.layers, self.directions, self.projection, self.bias, self.heads, self.resets
        return features == (1, 1, 0, 1, 1, 0)

    @property
    def of_cell(self) -> Cell:
        """What its cell declares."""
        return config(self).cell

    @property
    def baseline(self) -> Case:
        """What gpulstm is compared with among its own: the call without resets and heads, or the LSTM."""
        if self.resets or self.heads > 1:
            return replace(self, resets=0, heads=1)
        return replace(self, cell="lstm")

    @property
    def features(self) -> int:
        """Of the input: I."""
        return self.inputs or self.hidden

    @property
    def outputs(self) -> int:
        """Features of h in one direction: P."""
        return self.projection or self.hidden

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes under torch's names and in torch's order."""
        return config(self).shapes()

    def flops(self, mode: str) -> int:
        """Of the matrix products alone: those of the forward pass, and twice as many for the gradients."""
        forward = 2 * self.steps * self.batch * (self._numbers(recurrent=False) + self._numbers(recurrent=True))
        return forward if mode == "inference" else 3 * forward

    @property
    def resident_bytes(self) -> int:
        """What every step or call reads again: the recurrent weights; for one step the input weights too."""
        once = self._numbers(recurrent=False) if self.steps == 1 else 0
        return ITEMSIZE[self.dtype] * (once + self._numbers(recurrent=True))

    def read_bytes(self, mode: str) -> int:
        """Weights read at least: the recurrent ones every step, the input ones once; twice to train."""
        numbers = self._numbers(recurrent=True) * self.steps + self._numbers(recurrent=False)
        return ITEMSIZE[self.dtype] * numbers * (1 if mode == "inference" else 2)

    def _numbers(self, *, recurrent: bool) -> int:
        """In the matrices that a step multiplies with, or in those that the whole input is multiplied with."""
        matrices = {name: shape for name, shape in self.parameters.items() if name.startswith("weight")}
        return sum(
            math.prod(shape) for name, shape in matrices.items() if name.startswith("weight_ih") is not recurrent
        )


_FEATURES = {field.name: field.default for field in fields(Case) if field.name not in ("batch", "steps", "hidden")}
CPU_GRID = tuple(
    Case(*sizes)
    for sizes in (
        (1, 1, 128),
        (1, 1, 512),
        (1, 128, 256),
        (16, 128, 256),
        (64, 128, 256),
        (64, 128, 512),
        (32, 64, 1024),
        (1, 256, 1024),
        (256, 32, 128),
    )
)


@dataclass(frozen=True)
class Table:
    """Cases that are reported together, timed in ``modes`` by ``providers`` (None: by all)."""

    name: str
    cases: tuple[Case, ...]
    providers: tuple[str, ...] | None = None
    modes: tuple[str, ...] = MODES


SCALED = (SUBJECT, "torch")
STEPS = Table("steps", tuple(Case(1, 4**power, 128) for power in range(8)), SCALED)  # 1 to 16,384
BATCH = Table("batch", tuple(Case(4**power, 16, 128) for power in range(6)), SCALED)  # 1 to 1,024
# What training holds in memory: large cases of the grid, and a long one.
MEMORY_CASES = (Case(16, 128, 256), Case(64, 128, 512), Case(32, 64, 1024), Case(8, 1024, 256))
# What can be asked for: "narrow" is the inference of the grid with NARROW among the providers, "memory" is not timed.
TABLES = ("grid", "narrow", "scaling", "memory")


def timed_tables(wanted: Collection[str], grid: tuple[Case, ...], quick: bool) -> list[Table]:
    """What is timed for those of TABLES that are ``wanted``; ``quick``: every second case of those that scale."""
    found = []
    if "grid" in wanted or "narrow" in wanted:
        found.append(Table("grid", grid, modes=MODES if "grid" in wanted else ("inference",)))
    if "scaling" in wanted:
        found += [replace(table, cases=table.cases[:: 2 if quick else 1]) for table in (STEPS, BATCH)]
    return found


def cell_tables(wanted: Collection[str], asked: tuple[Case, ...], quick: bool) -> list[Table]:
    """Those of CELL_TABLES that are ``wanted``, with the cases ``asked`` for in their place, if any.

    None wanted: a table of the cases, of all providers. ``quick``: of each table the cases of one size, the first.
    """
    if not wanted:
        return [Table("cases", asked)]
    found = [table for table in CELL_TABLES if table.name in wanted]
    if asked:
        return [replace(table, cases=asked) for table in found]
    return [replace(table, cases=_of_one_size(table.cases)) if quick else table for table in found]


def _of_one_size(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    sizes = [(case.batch, case.steps, case.hidden) for case in cases]
    kept = SIZES[0] if SIZES[0] in sizes else sizes[0]
    return tuple(case for case, own in zip(cases, sizes, strict=True) if own == kept)


@dataclass(frozen=True)
class Provider:
    """A layer that is timed: ``module`` builds it and needs the packages ``requires``.

    The module has ``setup(threads)``, called once, and for each of ``modes`` a function of that name: given a
    :class:`bench.problem.Problem` it returns ``call, outputs``. ``call()`` is what is timed and ends when its
    results are there; ``outputs(result)`` turns what it returned into arrays named as :mod:`bench.problem`
    says. Both are kept until the next case, and with them whatever they hold.
    """

    name: str
    module: str
    requires: tuple[str, ...]
    modes: tuple[str, ...] = MODES
    tolerance: float | None = None  # of its error, where it rounds more than the dtype does; see bench.verify
    baseline: bool = False  # whether it is given the case's baseline


# With weights in fewer bits, in a table of their own. A gate sums 2 H products of weights of up to H^-1/2 and inputs of
# variance 1, so the standard deviation of its error is the same for every H: measured, at most 1.6e-3 where weights and
# inputs are rounded to bfloat16 (each by up to 2^-8 of itself), 2.7e-3 where weights are rounded to int8 (by up to
# 1/254 of the row's largest). The largest error in the grid's four million gates lies five of these away, and a cell,
# whose slopes are about one at most, hardly widens it: six to seven are tolerated.
NARROW = {
    "gpulstm_bf16": Provider("gpulstm_bf16", "bench.providers.gpulstm_bf16", ("gpulstm",), ("inference",), 1e-2),
    "gpulstm_int8": Provider("gpulstm_int8", "bench.providers.gpulstm_int8", ("gpulstm",), ("inference",), 2e-2),
}
OWN = (SUBJECT, BASELINE, *NARROW)  # those that are gpulstm
CPU_PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("gpulstm", "bench.providers.gpulstm", ("gpulstm",)),
        Provider("torch", "bench.providers.torch", ("torch",)),
        Provider("onnxruntime", "bench.providers.onnxruntime", ("onnxruntime", "onnx"), modes=("inference",)),
        Provider("openvino", "bench.providers.openvino", ("openvino", "onnx"), modes=("inference",)),
        Provider("jax", "bench.providers.jax", ("jax",)),
        *NARROW.values(),
    )
}
# h is the exponential of a difference of sums over all steps, some 700 after a thousand of them, which float32 rounds
# by up to 3e-5 each time something is added. Measured: 4.9e-3 of dx at (16,1024,256).
LOGARITHMS = 2e-2
# Modules and layers one calls from torch: the same torch, the same kernels, and what lies between.
TORCH_GRID = tuple(
    Case(*sizes)
    for sizes in (
        (1, 1, 128),
        (1, 1, 512),
        (1, 32, 64),
        (1, 128, 256),
        (16, 128, 256),
        (64, 128, 256),
        (32, 64, 512),
        (256, 32, 128),
    )
)
TORCH_PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(SUBJECT, "bench.providers.gpulstm_torch", ("gpulstm", "torch")),
        Provider("torch", "bench.providers.torch", ("torch",)),
        Provider("arrays", "bench.providers.gpulstm", ("gpulstm",)),
    )
}
PRODUCTS = ("lstm", "peephole", "zoneout", "recurrent_dropout", "cifg", "time_gap", "rnn_relu", "indrnn")
SIZES = ((16, 128, 256), (1, 128, 256), (64, 128, 512))
LAYER_NORM = ("layer_norm_lstm", "layer_norm_lstm_by_gate")
LOOPED = (SUBJECT, BASELINE, "torch_loop")
CELL_TABLES = (
    Table("products", tuple(Case(*sizes, cell=cell) for cell in PRODUCTS for sizes in SIZES), LOOPED),
    Table(
        "gru",
        tuple(replace(case, cell="gru") for case in CPU_GRID),
        (SUBJECT, "torch", "onnxruntime", "openvino", "jax"),
    ),
    Table("layer_norm", tuple(Case(16, 128, 256, cell=cell) for cell in LAYER_NORM), LOOPED),
    Table("resets", (Case(128, 128, 256, resets=3),), (*LOOPED, "torch_scan")),
    Table(
        "slstm",
        tuple(
            Case(*sizes, cell="slstm", heads=heads)
            for heads in (1, 4)
            for sizes in ((16, 128, 256), (1, 512, 256), (64, 128, 512))
        ),
        (*LOOPED, "flashrnn"),
    ),
    Table("scans", tuple(Case(16, 1024, 256, cell=cell) for cell in ("mingru", "minlstm")), (SUBJECT, "torch_loop")),
    Table(
        "scans_positive",
        tuple(Case(16, 1024, 256, cell=cell, bias=0) for cell in ("mingru_positive", "minlstm_positive")),
        (SUBJECT, "torch_loop", "mingru_pytorch"),
    ),
)
CELL_PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(SUBJECT, "bench.providers.gpulstm_calls", ("gpulstm",)),
        Provider(BASELINE, "bench.providers.gpulstm_calls", ("gpulstm",), baseline=True),
        Provider("torch_loop", "bench.providers.torch_loop", ("torch",)),
        Provider("torch_scan", "bench.providers.torch_scan", ("torch",)),
        *(CPU_PROVIDERS[name] for name in ("torch", "onnxruntime", "openvino", "jax")),
        Provider("flashrnn", "bench.providers.flashrnn", ("flashrnn", "torch")),
        Provider("mingru_pytorch", "bench.providers.mingru_pytorch", ("minGRU_pytorch", "torch"), tolerance=LOGARITHMS),
    )
}
REFERENCE = Provider("reference", "bench.providers.reference", ("gpulstm",))


def parse_case(text: str) -> Case:
    """``"16,128,256"`` or ``"16,128,256,inputs=64,layers=2"`` as a case.

    Raises:
        ValueError: not three positive integers, or features that a case has not.
    """
    parts = text.strip("()").split(",")
    try:
        batch, steps, hidden = (int(part) for part in parts[:3])
    except ValueError:
        raise ValueError(f"case: expected three integers B,T,H such as 16,128,256, got {text!r}") from None
    if min(batch, steps, hidden) < 1:
        raise ValueError(f"case: expected B, T and H of at least 1, got {text!r}")
    given: dict[str, Any] = {}
    for part in parts[3:]:
        name, _, value = part.strip().partition("=")
        if name not in _FEATURES:
            raise ValueError(f"case: expected B,T,H and some of {', '.join(_FEATURES)}, got {part!r} in {text!r}")
        given[name] = value if name in ("cell", "dtype") else int(value) if value.isdecimal() else -1
    case = Case(batch, steps, hidden, **given)
    if case.inputs == hidden:
        case = replace(case, inputs=0)
    for name, fits, expected in (
        ("dtype", case.dtype in ITEMSIZE, f"one of {', '.join(ITEMSIZE)}"),
        ("inputs", case.inputs >= 0, "a size"),
        ("layers", case.layers >= 1, "at least 1"),
        ("directions", case.directions in (1, 2), "1 or 2"),
        ("projection", 0 <= case.projection < hidden, f"less than H = {hidden}"),
        ("bias", case.bias in (0, 1), "0 or 1"),
        ("heads", case.heads >= 1, "at least 1"),
        ("resets", 0 <= case.resets <= 100, "a percentage"),
    ):
        if not fits:
            raise ValueError(f"case: expected {name} to be {expected}, got {text!r}")
    try:
        config(case)
    except ValueError as error:
        raise ValueError(f"case: expected a network that can be, got {text!r}: {error}") from None
    return case


AnyProvider = TypeVar("AnyProvider", bound=Provider)


def select(names: str | None, providers: Mapping[str, AnyProvider]) -> list[AnyProvider]:
    """The providers of a comma-separated list, all for None, in the registry's order.

    Raises:
        ValueError: a name that is not registered; the message lists those that are.
    """
    if names is None:
        return list(providers.values())
    return [providers[name] for name in named(names, providers, "providers")]


def named(text: str, known: Iterable[str], what: str) -> list[str]:
    """Those of ``known``, in its order, that a comma-separated list names.

    Raises:
        ValueError: a name that is not known, or none; the message begins with ``what`` and lists those that are.
    """
    known, wanted = list(known), {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(wanted.difference(known))
    if unknown or not wanted:
        raise ValueError(f"{what}: unknown {unknown}, got {text!r}; known are {', '.join(known)}")
    return [name for name in known if name in wanted]
