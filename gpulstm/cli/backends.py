"""The backend that a command computes with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .. import dispatch


def backend_context(device: str, backend: str | None) -> AbstractContextManager[Any]:
    """The context in which ``backend`` is in use, where one is asked for."""
    if device != "auto":
        dispatch.check_device(device)
    return nullcontext() if backend is None else dispatch.use_backend(backend)
