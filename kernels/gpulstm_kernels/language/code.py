"""A trace written down: as Python that runs on arrays, on registers and on Numba CUDA's numbers, and as CUDA C++.

Both have the functions that :mod:`gpulstm_kernels.cells` describes. A value that is used once stands where it is used;
one that is used again has a name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..cells import activations
from .graph import Value, is_number, ordered

FUNCTIONS = ("absolute", "exp", "log", "maximum", "minimum", "select", "sigmoid", "softplus", "sqrt", "tanh")
_DEEPEST = 20  # parentheses in each other: Python takes 200, and a reader fewer
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


class Derivation(NamedTuple):
    """What is written down of a cell."""

    gates: tuple[Value, ...]
    old: tuple[Value, ...]  # the states before the step
    given: tuple[Value, ...]  # h before the step where it is read, parameters, inputs
    h: Value
    new: tuple[Value, ...]  # the states after it
    saved: tuple[Value, ...]
    dh: Value
    dnew: tuple[Value, ...]
    dgates: tuple[Value, ...]
    dold: tuple[Value, ...]
    dgiven: tuple[Value, ...]  # of h before the step, parameters and differentiable inputs
    products: tuple[Value, ...] = ()
    dproducts: tuple[Value, ...] = ()


class Writer:
    """Writes values that are computed from ``known`` ones, which have texts.

    ``line``: of one that gets a name, ``prefix`` and a number. :attr:`lines` are those, :meth:`text` is a value's.
    """

    def __init__(
        self,
        roots: Sequence[Value],
        known: Mapping[Value, str],
        number: Callable[[float], str],
        line: Callable[[str, str], str],
        prefix: str = "v",
    ) -> None:
        self._texts = {value.index: text for value, text in known.items()}
        self._number, self._line, self._prefix = number, line, prefix
        self.lines: list[str] = []
        self._depths: Counter[int] = Counter()  # of parentheses
        # As the author wrote them: compilers keep much of an order, and arguments are made before what they are of.
        order = sorted(ordered(roots, self._texts), key=lambda value: value.index)
        self._uses = Counter(argument.index for value in order for argument in value.arguments)
        self._uses.update(root.index for root in roots)
        for value in order:
            if value.arguments and value.index not in self._texts:
                self._write(value)

    def _write(self, value: Value) -> None:
        weight = [repr(value.detail)] * (value.detail is not None)
        text = _applied(value.operator, [*weight, *(self.text(argument) for argument in value.arguments)])
        depth = 1 + max(self._depths[argument.index] for argument in value.arguments)
        if self._uses[value.index] > 1 or depth > _DEEPEST:
            name = f"{self._prefix}{len(self.lines)}"
            self.lines.append(self._line(name, text))
            text, depth = name, 0
        elif value.operator in _INFIX or value.operator == "neg":
            text = f"({text})"
        self._texts[value.index], self._depths[value.index] = text, depth

    def text(self, value: Value) -> str:
        return self._number(value.detail) if is_number(value) else self._texts[value.index]


def _applied(operator: str, arguments: Sequence[str]) -> str:
    if operator in _INFIX:
        return f" {_INFIX[operator]} ".join(arguments)
    return f"-{arguments[0]}" if operator == "neg" else f"{operator}({', '.join(arguments)})"


def formulas(values: Sequence[Value]) -> list[str]:
    """How the values that are saved are computed, a line each, and before them what several of them are made of."""
    leaves = {leaf: str(leaf.detail) for leaf in ordered(values) if leaf.operator == "leaf"}
    writer = Writer(values, leaves, repr, lambda name, text: f"  {name} = {text}")
    texts = [text[1:-1] if text.startswith("(") else text for text in map(writer.text, values)]
    return [*writer.lines, *(f"  saved_{k} = {text}" for k, text in enumerate(texts))]


def _names(prefix: str, values: Sequence[Value]) -> dict[Value, str]:
    return {value: f"{prefix}{k}" for k, value in enumerate(values)}


def _tuple(parts: Iterable[str]) -> str:
    text = "".join(f"{part}, " for part in parts)
    return f"({text.rstrip()})" if text else "()"


def _unpacked(names: Iterable[str], what: str) -> list[str]:
    names = list(names)
    return [f"    {_tuple(names)} = {what}"] if names else []


def _known_backward(d: Derivation, old: dict[Value, str], new: dict[Value, str], saved: dict[Value, str]) -> Any:
    """What backward is given, the better known last: a state that stays as it was is the old one."""
    return {d.h: "h"} | new | saved | old


def python(cell: str, d: Derivation) -> str:
    """A module with ``forward`` and ``backward``, as :class:`gpulstm_kernels.cells.Cell` wants them."""

    def whole(writer: Writer, values: Iterable[Value], like: str) -> list[str]:
        return [f"select({like}, {like}, 0.0, {v.detail!r})" if is_number(v) else writer.text(v) for v in values]

    def named(name: str, text: str) -> str:
        return f"    {name} = {text}"

    states = [value.detail.removeprefix("s.") for value in d.old]
    gates = {value: f"x_{value.detail.removeprefix('x.')}" for value in d.gates}
    old, new, dnew = (
        {value: f"{when}_{state}" for value, state in zip(values, states, strict=True)}
        for when, values in (("old", d.old), ("new", d.new), ("dnew", d.dnew))
    )
    saved = _names("saved_", d.saved)
    first = next(iter(gates.values()))
    given = {value: value.detail.replace(".", "_") for value in d.given}
    more = ", given" if given else ""

    forward = Writer([d.h, *d.new, *d.saved], gates | old | given, repr, named)
    results = [forward.text(d.h), *(_tuple(whole(forward, part, first)) for part in (d.new, d.saved))]
    lines = [
        f"def forward(gates, states{more}):",
        *_unpacked(gates.values(), "gates"),
        *_unpacked(old.values(), "states"),
        *_unpacked(given.values(), "given"),
        *forward.lines,
        f"    return {', '.join(results)}",
    ]
    known = _known_backward(d, old, new, saved) | {d.dh: "dh"} | dnew | given
    backward = Writer([*d.dgates, *d.dold, *d.dgiven], known, repr, named)
    gradients = [d.dgates, d.dold, *[d.dgiven] * bool(given)]
    lines += [
        "",
        "",
        f"def backward(dh, dstates, h, saved, states, previous{more}):",
        *_unpacked(saved.values(), "saved"),
        *_unpacked((f"new_{state}" for state in states), "states"),
        *_unpacked(old.values(), "previous"),
        *_unpacked(dnew.values(), "dstates"),
        *_unpacked(given.values(), "given"),
        *backward.lines,
        f"    return {', '.join(_tuple(whole(backward, part, 'dh')) for part in gradients)}",
    ]
    text = "\n".join([*lines, ""])
    used = [name for name in FUNCTIONS if f"{name}(" in text]
    heading = [f'"""What is derived of the cell {cell!r}."""', ""]
    if used:
        heading += [f"from {activations.__name__} import {', '.join(used)}", ""]
    return "\n".join([*heading, "", text])


def cuda(struct: str, d: Derivation) -> str:
    """A struct with the counts, ``forward`` and ``backward``, as the walks in CUDA C++ call them."""

    def number(value: float) -> str:
        return f"A({value!r})"

    def named(name: str, text: str) -> str:
        return f"        const A {name} = {text};"

    def assigned(writer: Writer, array: str, values: Iterable[Value]) -> list[str]:
        return [f"        {array}[{k}] = {writer.text(value)};" for k, value in enumerate(values)]

    old, dnew = _names("old_", d.old), _names("dnew_", d.dnew)
    gate, given, previous, state, save = (
        {value: f"{what}[{k}]" for k, value in enumerate(values)}
        for what, values in (
            ("gate", d.gates),
            ("given", d.given),
            ("previous", d.old),
            ("state", d.new),
            ("save", d.saved),
        )
    )
    forward = Writer([d.h, *d.new, *d.saved], gate | old | given, number, named)
    known = _known_backward(d, previous, state, save) | {d.dh: "dh"} | dnew | given
    backward = Writer([*d.dgates, *d.dold, *d.dgiven], known, number, named)
    counts = {"gates": d.gates, "states": d.old, "saved": d.saved}
    more = ("", "")
    if given:
        counts |= {"given": d.given, "given_gradients": d.dgiven}
        more = ", const A* given", ", const A* given, A* dgiven"
    return "\n".join(
        [
            '#include "numeric.cuh"',
            "",
            f"struct {struct} {{",
            f"    static constexpr int {', '.join(f'{what} = {len(values)}' for what, values in counts.items())};",
            "",
            "    template <class A>",
            f"    static __device__ __forceinline__ void forward(const A* gate, A* state, A& h, A* save{more[0]}) {{",
            *(named(text, f"state[{k}]") for k, text in enumerate(old.values())),
            *forward.lines,
            *assigned(forward, "state", d.new),
            f"        h = {forward.text(d.h)};",
            *assigned(forward, "save", d.saved),
            "    }",
            "",
            "    template <class A>",
            "    static __device__ __forceinline__ void backward(A dh, A h, const A* save, const A* state,",
            f"                                                    const A* previous, A* dstate, A* dgate{more[1]}) {{",
            *(named(text, f"dstate[{k}]") for k, text in enumerate(dnew.values())),
            *backward.lines,
            *assigned(backward, "dgate", d.dgates),
            *assigned(backward, "dstate", d.dold),
            *assigned(backward, "dgiven", d.dgiven),
            "    }",
            "};",
            "",
        ]
    )
