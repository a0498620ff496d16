"""Which of Python's interpreters this is: what is compiled for one process cannot be called from each of them."""

from __future__ import annotations

import ctypes


def is_subinterpreter() -> bool:
    """Whether this is another one than the process's main interpreter, such as mod_wsgi starts."""
    api = getattr(ctypes, "pythonapi", None)  # CPython's
    if api is None:
        return False
    current, identity = api.PyInterpreterState_Get, api.PyInterpreterState_GetID
    current.restype, current.argtypes = ctypes.c_void_p, ()
    identity.restype, identity.argtypes = ctypes.c_int64, (ctypes.c_void_p,)
    return bool(identity(current()) != 0)
