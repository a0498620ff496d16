"""How time is walked, a folder a walk: its kernels, its host side and, where there is one, its Numba twin."""

from __future__ import annotations

from typing import Protocol

from ...backend import LayerShape
from ..buffers import Buffers
from ..device.kernel import Kernel
from ..device.runtime import Device, Runtime
from .block import host as block_host
from .grid import host as grid_host
from .step import host as step_host


class Walk(Protocol):
    """The host side of a walk. All walks work on the same arrays, so forward and backward may walk differently."""

    def why_not(self, device: Device, shape: LayerShape, backward: bool) -> str | None:
        """In words, why a device cannot walk so; None where it can."""

    def kernels(self, shape: LayerShape) -> dict[str, Kernel]:
        """The kernels of a shape, by what they do."""

    def forward(self, runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
        """Walk forward: fills ys, states, and in training what backward needs."""

    def backward(self, runtime: Runtime, shape: LayerShape, buffers: Buffers) -> None:
        """Walk back: fills dgates, and carries dh and dstates to the first step."""


WALKS: dict[str, Walk] = {"step": step_host, "block": block_host, "grid": grid_host}
