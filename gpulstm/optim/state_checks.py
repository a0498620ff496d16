"""What optimizers, schedules and clipping check alike: arrays by name, and what state dicts hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import arrays, checks


def check_array(value: Any, name: str, writeable: bool = False) -> None:
    """Whether ``value`` is an array of floats on any device, and, if asked for, one that can be written to."""
    on_device = arrays.device_of(value) == "cuda"
    known = on_device or isinstance(value, np.ndarray)
    if not known or value.dtype not in checks.FLOATS:
        raise TypeError(
            f"{name}: expected a float32 or float64 array, got {value.dtype if known else type(value).__name__}"
        )
    if writeable and not on_device and not value.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")


def check_finite(finite: Any) -> None:
    """Numbers, on a GPU 0-d arrays there, as :meth:`Optimizer.step` takes them."""
    known = isinstance(finite, (tuple, list)) and all(
        isinstance(value, (int, float, np.number)) or getattr(value, "shape", None) == () for value in finite
    )
    if not known or len(finite) > 2:
        raise TypeError(f"finite: expected a tuple of up to two numbers, got {checks.shown(finite)}")


def check_keys(name: str, given: Any, expected: Any) -> None:
    """Whether ``given``, a dict with strings as keys, has exactly the keys ``expected``."""
    checks.named(given, name)
    missing, extra = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or extra:
        raise ValueError(f"{name}: expected the keys {sorted(expected)}, got missing {missing}, unexpected {extra}")


def scalar(value: Any) -> Any:
    """What a 0-d array holds; anything else as it is, for the check that follows."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
