"""Keras's HDF5 files as plain arrays, read by :mod:`gpulstm.io.hdf5_child` in a process that a time limit ends."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from .. import parsing
from . import hdf5_child
from .common import WeightsError

_START = 60.0  # seconds in which the process must have its libraries, on a busy machine too
_SECONDS = 5.0  # to read any file
_RATE = 1 << 25  # bytes of it a further second
_ANSWER = 1 << 24  # bytes of the description of what was found

T = TypeVar("T")


def layers(source: Path | bytes) -> tuple[list[dict[str, Any]], str | None]:
    """The recurrent layers in an HDF5 file, or one of these bytes, and the text of the model's configuration if any.

    Each is a dict of ``path`` (of its group, None in a file of Keras 2), ``name``, ``weights`` (a list of arrays once a
    direction) and ``why_not`` (what a layer without such weights is).

    Raises:
        WeightsError: a file that is cut short or damaged, links to other data, declares too many bytes, or takes longer
            than :data:`_SECONDS` and the time of its size.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise WeightsError("HDF5 is read in a process of its own; expected the path of Python in sys.executable")
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        child = subprocess.Popen(
            [sys.executable, "-I", str(Path(hdf5_child.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise WeightsError(f"HDF5 is read in a process of its own, which could not be started: {error}") from error
    with child as process:
        feeder = threading.Thread(target=_feed, args=(process.stdin, source, size), daemon=True)
        feeder.start()
        try:
            _within(_START, process, _started)
            found, arrays = _within(_SECONDS + size / _RATE, process, lambda out: _answer(out, size))
        finally:
            process.kill()
            feeder.join()
    for entry in found["layers"]:
        entry["weights"] = [[arrays[place] for place in side] for side in entry["weights"]]
    return found["layers"], found["words"]


def _feed(stdin: Any, source: Path | bytes, size: int) -> None:
    """Give the process its request, and a file that has no name; it may end before it has read them."""
    request: dict[str, Any] = {"path": [entry for entry in sys.path if isinstance(entry, str)], "size": size}
    request["file"] = None if isinstance(source, bytes) else str(source)
    with suppress(OSError), stdin:
        stdin.write(json.dumps(request).encode() + b"\n")
        if isinstance(source, bytes):
            stdin.write(source)


def _within(seconds: float, process: subprocess.Popen[bytes], take: Callable[[IO[bytes]], T]) -> T:
    """What ``take`` reads of the process, which is ended after ``seconds``.

    Raises:
        WeightsError: it was ended before, or ended by itself.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        assert process.stdout is not None
        return take(process.stdout)
    except EOFError:
        if late.is_set():
            raise WeightsError(f"took longer than {seconds:.0f} seconds to read; expected an undamaged file") from None
        code = process.wait()
        raise WeightsError(f"HDF5's library failed on it (exit code {code}); expected an undamaged file") from None
    finally:
        timer.cancel()
        timer.join()


def _started(stdout: IO[bytes]) -> None:
    line = stdout.readline(_ANSWER)
    if line != hdf5_child.READY:
        _parsed(line)


def _answer(stdout: IO[bytes], size: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What was found in a file of ``size`` bytes, and its arrays."""
    answer = _parsed(stdout.readline(_ANSWER))
    counts = [entry["size"] * math.prod(entry["shape"]) for entry in answer["arrays"]]
    if sum(counts) > hdf5_child.allowed(size):
        raise WeightsError(f"declares {sum(counts)} bytes in a file of {size}")
    data = stdout.read(sum(counts))
    if len(data) < sum(counts):
        raise EOFError
    arrays, at = [], 0
    for entry, count in zip(answer["arrays"], counts, strict=True):
        little = np.dtype(f"<f{entry['size']}")
        values = np.frombuffer(data, little, math.prod(entry["shape"]), at)
        arrays.append(values.reshape(entry["shape"]).astype(little.newbyteorder("="), copy=False))
        at += count
    return answer, arrays


def _parsed(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        if len(line) == _ANSWER:
            raise WeightsError(f"takes more than {_ANSWER} bytes to describe; expected a model's weights")
        raise EOFError
    answer = parsing.loads(line)
    if "error" in answer:
        raise WeightsError(answer["error"])
    return answer
