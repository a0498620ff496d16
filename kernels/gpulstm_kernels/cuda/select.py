"""Which walk computes a layer on a device, and why."""

from __future__ import annotations

from typing import NamedTuple

from .problem import Problem
from .runtime import Device


class Choice(NamedTuple):
    """The name of a walk's module, and in words why that one."""

    walk: str
    reason: str


def choose(
    device: Device, problem: Problem, backward: bool, walks: tuple[str, ...], override: str | None = None
) -> Choice:
    """The walk for one layer's forward or backward pass."""
    import os

    if os.environ.get("GPULSTM_WALK"):
        return Choice(os.environ["GPULSTM_WALK"], "asked for")
    return Choice("step", "takes any size and type")
