"""Which cases and contenders are timed on a GPU, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..registry import MODES, Case, Provider

STEPS = 512
# In the order of what they tell: an early cut leaves shapes spread over the whole grid.
BATCHES = (64, 16, 1, 256, 128)
HIDDEN = (512, 128, 1024, 256, 768, 64, 2048, 160)
DTYPES = ("bfloat16", "float32", "float16", "tf32")  # tf32: float32 whose products may round their factors

Task = tuple[Case, str, "Contender"]


@dataclass(frozen=True)
class Contender(Provider):
    """An LSTM that is timed on a GPU.

    Its module has ``misfit(case, mode, contender)``, why it cannot compute a case or None, and for each of ``modes`` a
    function of that name: given a :class:`bench.gpu.problem.Problem` and the contender it returns ``call, outputs`` as
    in :class:`bench.registry.Provider`, with all arrays on the device.

    Attributes:
        backend: of gpulstm.
        walk: of gpulstm, for both passes.
        default: whether it is timed when no contender is named.
    """

    backend: str = ""
    walk: str = ""
    default: bool = True


def _own(name: str, backend: str, walk: str, requires: tuple[str, ...]) -> Contender:
    return Contender(
        name, "bench.gpu.providers.gpulstm", requires, backend=backend, walk=walk, default=backend == "cupy"
    )


CONTENDERS = {
    contender.name: contender
    for contender in (
        *(_own(f"gpulstm {walk}", "cupy", walk, ("gpulstm", "cupy")) for walk in ("step", "block", "grid")),
        *(_own(f"numba {walk}", "numba_cuda", walk, ("gpulstm", "cupy", "numba")) for walk in ("step", "block")),
        Contender("torch", "bench.gpu.providers.torch", ("torch",)),
        Contender("flashrnn", "bench.gpu.providers.flashrnn", ("flashrnn", "torch")),
        Contender("haste", "bench.gpu.providers.haste", ("haste_pytorch", "torch")),
    )
}


def is_own(name: str) -> bool:
    """Whether a contender is gpulstm, by one of its walks."""
    return CONTENDERS[name].walk != ""


def cases(dtypes: Sequence[str] = DTYPES) -> list[Case]:
    """The grid, the most telling first: by the sum of the places in the orders above."""
    places = {
        Case(batch, STEPS, hidden, dtype): (b + h + 2 * d, d, h, b)
        for d, dtype in enumerate(dtypes)
        for h, hidden in enumerate(HIDDEN)
        for b, batch in enumerate(BATCHES)
    }
    return sorted(places, key=places.__getitem__)


def tasks(grid: Sequence[Case], contenders: Sequence[Contender]) -> Iterator[Task]:
    """What is measured, one after another."""
    for case in grid:
        for mode in MODES:
            for contender in contenders:
                yield case, mode, contender
