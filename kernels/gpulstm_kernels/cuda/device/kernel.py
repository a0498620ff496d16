"""A kernel by what it is: its file, its name, and the arguments of its template."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...cells import Cell

Argument = np.dtype | Cell | bool | int | str


@dataclass(frozen=True)
class Kernel:
    """A kernel, the same for CUDA C++ and for its Numba twin.

    Attributes:
        source: the ``.cu`` file without its ending, from the folder of :mod:`gpulstm_kernels.cuda`, or a whole path.
        name: of the ``__global__`` function.
        arguments: of its template, in order: a dtype, a cell, a bool or an int each, or the name of a C++ type.
    """

    source: str
    name: str
    arguments: tuple[Argument, ...] = ()

    @property
    def cell(self) -> Cell | None:
        """The cell among the arguments."""
        return next((argument for argument in self.arguments if isinstance(argument, Cell)), None)
