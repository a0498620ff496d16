"""What optimizers and clipping launch on a GPU; nothing here waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..arrays.cuda import launch, total


def update(
    rule: str, param: Any, gradient: Any, state: Sequence[Any], rates: Any, finite: Sequence[Any], momentum: bool
) -> None:
    """One optimizer's update of one parameter in place: ``rule`` and ``rates`` are as ``optimizer.cu`` says.

    ``momentum`` says whether ``state`` has the buffer of a momentum. Nothing changes where one of the (up to two)
    numbers in ``finite`` is not finite.
    """
    first, second = (*state, None, None)[:2]
    checked = (*finite, None, None)[:2]
    arguments = (param, gradient, first, second, rates, *checked, int(momentum), param.size)
    launch("kernels/optimizer", "update", (param.dtype, rule), param.size, arguments)


def clip_by_norm(grads: Sequence[Any], most: float) -> Any:
    """Scale ``grads`` in place to a joint norm of at most ``most``; the norm before, a 0-d float64 array."""
    norm = total(grads, squares=True, root=True)
    for gradient in grads:
        arguments = (gradient, norm, float(most), gradient.size)
        launch("kernels/network", "clip", (gradient.dtype,), gradient.size, arguments)
    return norm
