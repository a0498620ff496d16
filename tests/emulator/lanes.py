"""How a process is started in which a sanitizer watches the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import build

ROOT = Path(__file__).parents[2]
_RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
_OPTIONS = {
    "address": {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0"},
}


def run(sanitizer: str, arguments: Sequence[str], **extra: str) -> subprocess.CompletedProcess[str]:
    """``python arguments`` with the sanitizer's library loaded first; "plain" for none."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "tests"))}
    environment |= {"OPENBLAS_NUM_THREADS": "1", **extra}
    if sanitizer != "plain":
        name = _RUNTIMES[sanitizer]
        asked = [build.compiler(), f"-print-file-name={name}"]
        library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(library).is_absolute():
            raise build.BuildError(f"{build.compiler()} has no {name}: install the compiler's sanitizers")
        environment |= {"LD_PRELOAD": library, **_OPTIONS[sanitizer]}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
