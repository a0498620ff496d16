"""The stages of a cell's step as CUDA C++: a struct whose functions any walk calls with an object of its own.

Such an ``io`` loads and stores the values of one unit of a row, by the kinds of :mod:`.device_stages`: ``io.gate(0)``,
``io.set_slot(2, value)``, and ``io.add_mean(1, value)`` for each unit before the mean is taken; its type says in ``A``
what is computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .device_stages import DeviceStep, backward_step, forward_step, operand_numbers, operands_of, products_of
from .stage_code import Language, saved_of_row

if TYPE_CHECKING:
    from .cell import TracedCell


def _load(kind: str, number: int | None = None) -> str:
    return f"io.{kind}({'' if number is None else number})"


def _store(kind: str, number: int | None = None) -> str:
    return f"io.set_{kind}({'' if number is None else f'{number}, '}{{}});"


def _number(value: float) -> str:
    return f"A({value!r})"


_CUDA = Language(_number, _number, lambda name, text: f"const A {name} = {text};")


def struct(name: str, cell: TracedCell) -> str:
    """The struct of a cell: counts, and for a step and its gradient, ``Forward`` and ``Backward``, each stage.

    Of these: ``stages``, ``slots``, ``means``; behind a stage so many means are taken, ``sums(stage)``, the first of
    them ``first_mean(stage)``, and so many products are made, ``multiplies(stage)``; ``stage<K>(io)`` is a stage. Of a
    product ``operand(product)`` is its operand, and in a pass ``behind(product)`` the stage it is made behind, or -1.
    """
    forward = forward_step(cell, _load, _store, _CUDA, training=True)
    backward = backward_step(cell, _load, _store, _CUDA)
    counts = {"gates": len(cell.preactivations), "states": len(cell.states), "saved": cell.saved}
    counts |= {"given": len(cell.given), "given_gradients": len(cell.given_gradients)}
    counts |= {"saved_of_row": len(saved_of_row(cell))}
    counts |= {"products": len(products_of(cell)), "operands": len(operands_of(cell))}
    return "\n".join(
        [
            '#include "numeric.cuh"',
            "",
            f"struct {name} {{",
            *_constants(counts),
            _table("operand", "product", operand_numbers(cell)),
            "",
            *_pass("Forward", forward, len(products_of(cell))),
            "",
            *_pass("Backward", backward, len(products_of(cell))),
            "};",
            "",
        ]
    )


def _constants(counts: dict[str, int]) -> list[str]:
    return [f"    static constexpr int {', '.join(f'{what} = {count}' for what, count in counts.items())};"]


def _table(name: str, index: str, values: Sequence[int]) -> str:
    texts = ", ".join(map(str, values or [-1]))  # C++ has no empty arrays
    return (
        f"    static __host__ __device__ constexpr int {name}(int {index}) {{ "
        f"constexpr int of[] = {{{texts}}}; return of[{index}]; }}"
    )


def _pass(name: str, of: DeviceStep, products: int) -> list[str]:
    stages, means = len(of.step.plan.stages), of.means
    behind = {product: stage for stage, numbers in enumerate(of.products) for product in numbers}
    lines = [f"    struct {name} {{"]
    lines += [f"    {line}" for line in _constants({"stages": stages, "slots": of.slots, "means": sum(means)})]
    tables = {
        "sums": ("stage", means),
        "first_mean": ("stage", [sum(means[:k]) for k in range(stages)]),
        "multiplies": ("stage", [len(numbers) for numbers in of.products]),
        "behind": ("product", [behind.get(product, -1) for product in range(products)]),
    }
    lines += [f"    {_table(name, *table)}" for name, table in tables.items()]
    lines += [
        "",
        "        template <int STAGE, class Io>",
        "        static __device__ __forceinline__ void stage(Io& io) {",
        "            using A = typename Io::A;",
    ]
    for k in range(stages):
        of_row, of_unit, summed = of.step.lines(k)
        first = sum(means[:k])
        body = [*of_row, *of_unit, *(f"io.add_mean({first + j}, {text});" for j, text in enumerate(summed))]
        lines += [f"            if constexpr (STAGE == {k}) {{", *(f"                {line}" for line in body)]
        lines.append("            }")
    return [*lines, "        }", "    };"]
