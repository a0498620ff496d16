"""Whether float32 products on a GPU may round their factors to TF32 (10 bits of mantissa instead of 23)."""

from __future__ import annotations

_allowed = False


def allow_tf32(allowed: bool) -> None:
    """Let float32 products on a GPU use TF32 tensor cores: several times faster, with a relative error near 5e-4.

    It holds for the whole process, for calls from now on. Off at the start, as in ``torch.backends.cuda``.

    Raises:
        TypeError: ``allowed`` is not a bool.
    """
    global _allowed
    if not isinstance(allowed, bool):
        raise TypeError(f"allowed: expected True or False, got {allowed!r}")
    _allowed = allowed


def tf32_allowed() -> bool:
    """Whether :func:`allow_tf32` has been turned on."""
    return _allowed
