"""What is timed and who is timed: cases, modes and providers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

MODES = ("inference", "training")
SUBJECT = "gpulstm"  # the provider that the others are compared with


@dataclass(frozen=True)
class Case:
    """One layer, I = H: ``batch`` sequences of ``steps`` steps with ``hidden`` units, in ``dtype``."""

    batch: int
    steps: int
    hidden: int
    dtype: str = "float32"

    @property
    def label(self) -> str:
        return f"({self.batch},{self.steps},{self.hidden})"

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes under torch's names."""
        gates = 4 * self.hidden
        return {
            "weight_ih_l0": (gates, self.hidden),
            "weight_hh_l0": (gates, self.hidden),
            "bias_ih_l0": (gates,),
            "bias_hh_l0": (gates,),
        }

    def flops(self, mode: str) -> int:
        """Of the matrix products alone: those of the forward pass, and twice as many for the gradients."""
        forward = 2 * self.steps * self.batch * 4 * self.hidden * (self.hidden + self.hidden)
        return forward if mode == "inference" else 3 * forward

    @property
    def resident_bytes(self) -> int:
        """What every step or call reads again: the recurrent weights; for one step the input weights too."""
        return self._matrix_bytes * (2 if self.steps == 1 else 1)

    def read_bytes(self, mode: str) -> int:
        """Weights read at least: the recurrent ones every step, the input ones once; twice to train."""
        forward = self._matrix_bytes * (self.steps + 1)
        return forward if mode == "inference" else 2 * forward

    @property
    def _matrix_bytes(self) -> int:
        return 4 * self.hidden * self.hidden * {"float32": 4}[self.dtype]


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


@dataclass(frozen=True)
class Provider:
    """An LSTM that is timed: ``module`` builds it and needs the packages ``requires``.

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


# With weights in fewer bits, in a table of their own. A gate sums 2 H products of weights of up to H^-1/2 and inputs of
# variance 1, so the standard deviation of its error is the same for every H: measured, at most 1.6e-3 where weights and
# inputs are rounded to bfloat16 (each by up to 2^-8 of itself), 2.7e-3 where weights are rounded to int8 (by up to
# 1/254 of the row's largest). The largest error in the grid's four million gates lies five of these away, and a cell,
# whose slopes are about one at most, hardly widens it: six to seven are tolerated.
NARROW = {
    "gpulstm_bf16": Provider("gpulstm_bf16", "bench.providers.gpulstm_bf16", ("gpulstm",), ("inference",), 1e-2),
    "gpulstm_int8": Provider("gpulstm_int8", "bench.providers.gpulstm_int8", ("gpulstm",), ("inference",), 2e-2),
}
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
REFERENCE = Provider("reference", "bench.providers.reference", ("gpulstm",))


def parse_case(text: str) -> Case:
    """``"16,128,256"`` as a case.

    Raises:
        ValueError: not three positive integers.
    """
    try:
        batch, steps, hidden = (int(part) for part in text.strip("()").split(","))
    except ValueError:
        raise ValueError(f"case: expected three integers B,T,H such as 16,128,256, got {text!r}") from None
    if min(batch, steps, hidden) < 1:
        raise ValueError(f"case: expected B, T and H of at least 1, got {text!r}")
    return Case(batch, steps, hidden)


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
