"""The gradient of a trace, and what of its forward is saved for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from .graph import COUPLED, Value, add, apply, couple, div, is_number, mul, neg, ordered, select, sub

# What an operator costs in additions of registers: the instructions that the CPU's code for it has, a division as the
# five cycles in which a core starts two additions each.
COSTS = {
    "add": 1,
    "sub": 1,
    "mul": 1,
    "neg": 1,
    "maximum": 2,
    "minimum": 2,
    "absolute": 1,
    "select": 2,
    "div": 10,
    "sqrt": 10,
    "exp": 15,
    "log": 20,
    "tanh": 25,
    "sigmoid": 25,
    "softplus": 40,
}
# What it costs to save a value: four bytes written and read again by a core that gets 10 GB/s of memory take as long as
# 30 additions of registers of 64 bytes. Below that the tape of an LSTM would hold tanh(c) too, a fifth value.
SAVE = 30
_SAVE_OF_ROW = 1  # of a value that all units of a row share

_Rule = Callable[..., tuple[Value, ...]]


def _one(value: Value) -> Value:
    return value.trace.number(1.0)


def _zero(value: Value) -> Value:
    return value.trace.number(0.0)


def _of_absolute(d: Value, y: Value, a: Value) -> tuple[Value]:
    zero = _zero(d)
    return (select(a, zero, d, select(zero, a, neg(d), zero)),)


def _of_product(d: Value, y: Value, a: Value) -> tuple[Value]:
    return (couple("product_back", d, y.detail),)


def _of_mean(d: Value, y: Value, a: Value) -> tuple[Value]:
    return (d if is_number(d) else couple("row_mean", d),)


# From the gradient of an operator's value y, the gradients of its arguments: in y itself where that is cheaper.
RULES: dict[str, _Rule] = {
    "add": lambda d, y, a, b: (d, d),
    "sub": lambda d, y, a, b: (d, neg(d)),
    "mul": lambda d, y, a, b: (mul(d, b), mul(d, a)),
    "div": lambda d, y, a, b: (div(d, b), neg(mul(div(d, b), y))),
    "neg": lambda d, y, a: (neg(d),),
    "tanh": lambda d, y, a: (mul(d, sub(_one(y), mul(y, y))),),
    "sigmoid": lambda d, y, a: (mul(mul(d, y), sub(_one(y), y)),),
    "exp": lambda d, y, a: (mul(d, y),),
    "log": lambda d, y, a: (div(d, a),),
    "sqrt": lambda d, y, a: (div(mul(y.trace.number(0.5), d), y),),
    "softplus": lambda d, y, a: (mul(d, apply("sigmoid", a)),),
    "absolute": _of_absolute,
    "maximum": lambda d, y, a, b: (select(a, b, d, _zero(d)), select(a, b, _zero(d), d)),
    "minimum": lambda d, y, a, b: (select(b, a, d, _zero(d)), select(b, a, _zero(d), d)),
    "select": lambda d, y, a, b, x, z: (
        _zero(d),
        _zero(d),
        select(a, b, d, _zero(d)),
        select(a, b, _zero(d), d),
    ),
    "product": _of_product,
    "row_mean": _of_mean,
}


def gradient(seeds: Sequence[tuple[Value, Value]], wanted: Sequence[Value]) -> tuple[Value, ...]:
    """From values and their gradients, the gradients of ``wanted``, by reverse mode."""
    found: dict[int, Value] = {}

    def accumulate(value: Value, d: Value) -> None:
        if not is_number(value) and not is_number(d, 0.0):
            found[value.index] = add(found[value.index], d) if value.index in found else d

    for value, d in seeds:
        accumulate(value, d)
    for value in reversed(ordered(value for value, _ in seeds)):
        if value.index in found and value.arguments:
            parts = RULES[value.operator](found[value.index], value, *value.arguments)
            for argument, d in zip(value.arguments, parts, strict=True):
                accumulate(argument, d)
    return tuple(found.get(value.index, _zero(value)) for value in wanted)


def choose_saved(forward: Sequence[Value], backward: Sequence[Value], known: Collection[Value]) -> tuple[Value, ...]:
    """Which values of ``forward`` are saved, so that saving them and computing the others again costs least.

    ``backward``: what is computed from them. ``known``: values that backward has anyway. A value is at hand where it is
    saved, for :data:`SAVE`, or computed again, for its operator's cost, from arguments that are at hand: the least sum
    is a minimum cut of a graph with two nodes a value, of which one says that it is at hand, the other that it is
    computed again.
    """
    free = {value.index for value in known}
    uniform = uniform_of(forward)
    of_forward = {value.index: value for value in ordered(forward) if value.index not in free and not is_number(value)}
    needed: dict[int, Value] = {}
    cut = _Cut()
    seen: set[int] = set()
    walk = list(backward)
    while walk:
        value = walk.pop()
        if value.index in seen or value.index in free:
            continue
        seen.add(value.index)
        if value.index in of_forward:
            needed[value.index] = value
        else:
            walk += value.arguments
    walk = list(needed.values())
    seen = set()
    while walk:
        value = walk.pop()
        if value.index in seen:
            continue
        seen.add(value.index)
        at_hand, again = ("at hand", value.index), ("again", value.index)
        cut.connect(at_hand, again, _SAVE_OF_ROW if value.index in uniform else SAVE)
        cost = cut.NEVER if value.operator in COUPLED or not value.arguments else COSTS[value.operator]
        cut.connect(again, cut.SINK, cost)
        for argument in value.arguments:
            if argument.index in of_forward:
                cut.connect(again, ("at hand", argument.index), cut.NEVER)
                walk.append(argument)
    for index in needed:
        cut.connect(cut.SOURCE, ("at hand", index), cut.NEVER)
    side = cut.source_side()
    chosen = [i for i in of_forward if ("at hand", i) in side and ("again", i) not in side]
    return tuple(of_forward[index] for index in sorted(chosen))  # in the order in which the author made them


def uniform_of(roots: Sequence[Value]) -> set[int]:
    """Which of the values that ``roots`` are made of all units of a row share: means, and what is made of those."""
    found: set[int] = set()
    for value in ordered(roots):
        shared = bool(value.arguments) and all(is_number(a) or a.index in found for a in value.arguments)
        if value.operator == "row_mean" or shared:
            found.add(value.index)
    return found


class _Cut:
    """A minimum cut (Ford and Fulkerson 1956; Edmonds and Karp 1972) of a graph of some tens of nodes."""

    SOURCE, SINK = ("source", 0), ("sink", 0)
    NEVER = 1 << 30

    def __init__(self) -> None:
        self._left: dict[tuple[str, int], dict[tuple[str, int], int]] = {self.SOURCE: {}, self.SINK: {}}

    def connect(self, a: tuple[str, int], b: tuple[str, int], capacity: int) -> None:
        for one, other, more in ((a, b, capacity), (b, a, 0)):
            edges = self._left.setdefault(one, {})
            edges[other] = edges.get(other, 0) + more

    def source_side(self) -> set[tuple[str, int]]:
        """The nodes on the source's side of a minimum cut: the smallest such set."""
        while self.SINK in (came := self._reached()):
            path = [self.SINK]
            while path[-1] != self.SOURCE:
                path.append(came[path[-1]])
            edges = list(zip(path[1:], path, strict=False))
            flow = min(self._left[a][b] for a, b in edges)
            for a, b in edges:
                self._left[a][b] -= flow
                self._left[b][a] += flow
        return set(came)

    def _reached(self) -> dict[tuple[str, int], tuple[str, int]]:
        came = {self.SOURCE: self.SOURCE}
        queue = deque([self.SOURCE])
        while queue:
            node = queue.popleft()
            for other, left in self._left[node].items():
                if left > 0 and other not in came:
                    came[other] = node
                    queue.append(other)
        return came
