"""CUDA C++ to machine code for any architecture without a device or a driver, and what ptxas and nvdisasm say of it."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_CODE = re.compile(r"^\.text\.(\w+):")
_MMA = re.compile(r"\b[A-Z]*MMA\.[\w.]+")
_HIGH_WORD = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")  # alone in its line, below an instruction and its low word
_STALL = 41  # in the high word the first of four bits: cycles until the warp may issue again (Jia et al. 2018)


class Built(NamedTuple):
    """A kernel for one architecture: registers a thread, bytes spilled and of static shared memory.

    Where there is nvdisasm also the instructions for tensor cores, and the cycles that its instructions stall a warp,
    each taken once. (What waits for memory or for another unit waits on a barrier, whose time is not in it.)
    """

    registers: int
    spills: int
    shared: int
    tensor: frozenset[str] | None
    stall: int | None


class Job(NamedTuple):
    """Expressions of one source, for one compute capability (major · 10 + minor)."""

    source: str
    expressions: tuple[str, ...]
    capability: int


def _installed(*places: str) -> Path | None:
    """The first of ``places`` in the folders of NVIDIA's packages."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        for place in places:
            if (Path(root) / place).exists():
                return Path(root) / place
    return None


def disassembler() -> str | None:
    """nvdisasm, from its package or the system's."""
    packaged = _installed("cu13/bin/nvdisasm", "cuda_nvdisasm/bin/nvdisasm")
    return str(packaged) if packaged else shutil.which("nvdisasm")


def build(job: Job) -> dict[str, Built]:
    """What comes of each expression, compiled with CuPy's own options.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    from cuda.core import Program, ProgramOptions

    headers = _installed("cu13/include/cuda_fp16.h", "cuda_runtime/include/cuda_fp16.h")
    options = ProgramOptions(
        arch=f"sm_{job.capability}",
        std="c++17",
        ftz=True,
        device_as_default_execution_space=True,
        include_path=[str(headers.parent)] if headers else None,
        ptxas_options=["-v"],
    )
    log = io.StringIO()
    try:
        code = Program(job.source, "c++", options).compile("cubin", name_expressions=list(job.expressions), logs=log)
    except Exception as error:  # its own kind may not survive the way back to another process
        raise RuntimeError(f"sm_{job.capability}: {error}\n{log.getvalue()}") from None
    symbols = {symbol.decode(): expression for expression, symbol in code.symbol_mapping.items()}
    disassembled = _disassembled(bytes(code.code))
    built = {}
    for name, text in _entries(log.getvalue()).items():
        spilled, used, shared = _SPILLS.search(text), _REGISTERS.search(text), _SHARED.search(text)
        assert spilled is not None, text
        assert used is not None, text
        built[symbols[name]] = Built(
            int(used[1]),
            int(spilled[1]) + int(spilled[2]),
            int(shared[1]) if shared else 0,
            *(None, None) if disassembled is None else disassembled[name],
        )
    return built


def _entries(log: str) -> dict[str, str]:
    """What ptxas says of each kernel."""
    starts = [(match[1], match.start()) for match in _ENTRY.finditer(log)]
    ends = [start for _, start in starts[1:]] + [len(log)]
    return {name: log[start:end] for (name, start), end in zip(starts, ends, strict=True)}


def _disassembled(code: bytes) -> dict[str, tuple[frozenset[str], int]] | None:
    """The different matrix instructions of each kernel, and the cycles that its instructions stall for."""
    program = disassembler()
    if program is None:
        return None
    tensor: dict[str, set[str]] = {}
    stall: dict[str, int] = {}
    kernel = ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        with subprocess.Popen([program, "-c", "-hex", file.name], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(".text."):
                    match = _CODE.match(line)
                    if match:
                        kernel = match[1]
                        tensor[kernel], stall[kernel] = set(), 0
                elif match := _HIGH_WORD.match(line):
                    stall[kernel] += int(match[1], 16) >> _STALL & 15
                elif "MMA." in line:
                    tensor[kernel].update(_MMA.findall(line))
        assert process.returncode == 0
    return {name: (frozenset(tensor[name]), stall[name]) for name in tensor}
