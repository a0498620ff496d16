"""Kernels as functions of the CPU: their source compiled against the emulator by the machine's C++ compiler.

Libraries are kept in a folder of the user's temporary directory under a hash of all that went into them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SANITIZERS = {
    "": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DEMULATOR_ASAN"),
    "thread": ("-fsanitize=thread", "-DEMULATOR_TSAN"),
}
_COMMON = ("-std=c++20", "-O1", "-g", "-fPIC", "-w", "-DGPULSTM_EMULATOR", "-ffp-contract=off")


class BuildError(RuntimeError):
    """What the C++ compiler did not take, or that there is none."""


@functools.cache
def compiler() -> str:
    """The C++ compiler: ``$CXX``, g++ or clang++."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise BuildError("the emulator needs a C++20 compiler: install g++ or clang++, or set CXX")


@functools.cache
def headers() -> tuple[str, ...]:
    """The folders of CUDA's headers, from the packages that ``gpulstm[dev]`` installs."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        for folder in ("cu13/include", "cuda_runtime/include"):
            if (Path(root) / folder / "cuda_fp16.h").is_file():
                return (str(Path(root) / folder),)
    raise BuildError(
        "the emulator needs CUDA's headers (cuda_fp16.h): python -m pip install nvidia-cuda-runtime nvidia-cuda-crt"
    )


@functools.cache
def _tools() -> str:
    """What tells one version of the compiler and of CUDA's headers from another."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    return version + "".join((Path(folder) / "cuda_fp16.h").read_text() for folder in headers())


def _run(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(arguments)}\n{done.stderr}")


def _cached(name: str, *ingredients: str) -> Path:
    """Where what is made of ``ingredients`` is kept."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"gpulstm-emulator-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    digest = hashlib.sha256("\0".join((compiler(), _tools(), *_COMMON, *ingredients)).encode()).hexdigest()
    return folder / f"{digest[:24]}-{name}"


def _flags(sanitizer: str) -> list[str]:
    return [compiler(), *_COMMON, *SANITIZERS[sanitizer], *(f"-isystem{folder}" for folder in headers())]


def _part(name: str, *flags: str) -> ctypes.CDLL:
    """A file of this folder as a library, for all that is loaded later."""
    library = _cached(f"{name}.so", *flags, *((HERE / file).read_text() for file in ("emulator.h", f"{name}.cpp")))
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        command = [compiler(), *_COMMON, *flags, *(f"-isystem{folder}" for folder in headers())]
        _run([*command, "-shared", str(HERE / f"{name}.cpp"), "-o", str(partial)])
        partial.replace(library)
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


@functools.cache
def machine(sanitizer: str) -> ctypes.CDLL:
    """The emulator itself, which all kernels of a sanitizer share. It is not checked: it owns what kernels use."""
    loaded = _part("emulator", *(flag for flag in SANITIZERS[sanitizer] if flag.startswith("-D")))
    loaded.emulator_launch.restype = ctypes.c_char_p
    return loaded


@functools.cache
def cublas() -> ctypes.CDLL:
    """A library with the calls of cuBLAS that :mod:`gpulstm_kernels.cuda.device.blas` makes."""
    return _part("cublas", "-O2")


@functools.cache
def _precompiled(sanitizer: str) -> Path:
    """A folder with emulator.h as the compiler's own precompiled header: CUDA's headers take longer than a kernel."""
    folder = _cached("header", sanitizer, (HERE / "emulator.h").read_text())
    if not (folder / "emulator.h.gch").exists():
        partial = folder.with_suffix(f".{os.getpid()}")
        partial.mkdir()
        shutil.copy(HERE / "emulator.h", partial)
        header = str(partial / "emulator.h")
        _run([*_flags(sanitizer), "-x", "c++-header", header, "-o", f"{header}.gch"])
        if folder.exists():
            shutil.rmtree(partial)
        else:
            partial.rename(folder)
    return folder


def load(source: str, expressions: Sequence[str], sanitizer: str = "") -> dict[str, tuple[int, str]]:
    """The kernels of ``source`` by their C++ names: the address of each for ``emulator_launch``, and its arguments.

    Raises:
        BuildError: no compiler or headers, or what the compiler says of the source.
    """
    machine(sanitizer)
    entries = "".join(
        f'extern "C" void entry_{i}(void** arguments) {{ emulator::call(&{name}, arguments); }}\n'
        f'extern "C" const char* signature_{i}() {{ return emulator::signature(&{name}); }}\n'
        for i, name in enumerate(expressions)
    )
    folder = _precompiled(sanitizer)
    library = _cached("kernels.so", sanitizer, (HERE / "emulator.h").read_text(), source, entries)
    if not library.exists():
        text = library.with_suffix(f".{os.getpid()}.cpp")
        text.write_text(f"{source}\n{entries}")
        partial = library.with_suffix(f".{os.getpid()}")
        _run([*_flags(sanitizer), f"-I{folder}", "-shared", str(text), "-o", str(partial)])
        partial.replace(library)
        text.unlink()
    loaded = ctypes.CDLL(str(library))
    found = {}
    for i, name in enumerate(expressions):
        signature = loaded[f"signature_{i}"]
        signature.restype = ctypes.c_char_p
        address = ctypes.cast(loaded[f"entry_{i}"], ctypes.c_void_p).value
        assert address is not None
        found[name] = address, signature().decode()
    return found
