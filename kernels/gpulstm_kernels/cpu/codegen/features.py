"""What the CPU that Numba compiles for can do, and this process may use."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llvmlite.binding as llvm
from numba import config

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux's asm/unistd_64.h, asm/prctl.h, xfeatures
_L2_SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")


def _features() -> set[str]:
    """In LLVM's names."""
    if config.CPU_FEATURES is None:
        return {name for name, present in llvm.get_host_cpu_features().items() if present}
    # the user's NUMBA_CPU_FEATURES, "+avx2,-avx512f,..."
    return {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}


def _may_use_tiles() -> bool:
    """Whether Linux lets this process, its threads and its children use AMX, which it must be asked for."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def _l2_bytes() -> int:
    """Of a core's L2 cache, where Linux tells; else what is usual."""
    try:
        return int(_L2_SIZE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 20


def _registers() -> tuple[int, int]:
    """Width of a vector register in bytes, and how many there are."""
    if {"avx512f", "avx512bw"} <= FEATURES:
        return 64, 32
    if "avx2" in FEATURES:
        return 32, 16
    return 16, 16 if IS_X86 else 32


FEATURES = _features()
IS_X86 = "x86" in llvm.get_process_triple()
REGISTER_BYTES, REGISTERS = _registers()
CACHE_LINE = 64  # bytes
# Products of bfloat16 in the registers of AMX; what else is narrow counts on AVX-512 where there is AMX.
AMX = {"amx-tile", "amx-bf16", "avx512bf16", "avx512bw"} <= FEATURES and _may_use_tiles()
L2_BYTES = _l2_bytes()
