"""How much memory this process may have, and where that cannot be known."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpulstm import memory_limit as module
from gpulstm.memory_limit import memory_limit

CGROUP2 = "29 23 0:26 / {at} rw - cgroup2 cgroup2 rw"
CGROUPS = {
    "a container": ("0::/\n", CGROUP2, {"memory.max": "123456789"}, 123456789),
    "no limit": ("0::/a\n", CGROUP2, {"a/memory.max": "max"}, None),
    "more than the machine has": ("0::/a\n", CGROUP2, {"a/memory.max": str(1 << 63)}, None),
    "a parent's": ("0::/a/b\n", CGROUP2, {"a/memory.max": "200000000", "a/b/memory.max": "900000000"}, 200000000),
    "another group's": ("0::/a\n", CGROUP2, {"b/memory.max": "1000"}, None),
    "version 1": (
        "4:memory:/c\n3:cpu,cpuacct:/a\n0::/\n",
        "30 23 0:27 / {at} rw - cgroup cgroup rw,memory\n31 23 0:28 / /elsewhere rw - cgroup cgroup rw,cpu",
        {"c/memory.limit_in_bytes": "300000000", "memory.limit_in_bytes": str(1 << 62), "a/memory.max": "1000"},
        300000000,
    ),
    "nonsense": ("memory\n", CGROUP2, {"memory.max": "1000"}, None),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_memory_is_the_least_of_all_limits(case: str, tmp_path: Path) -> None:
    physical = memory_limit(tmp_path / "no such system")
    assert physical is not None
    assert 1 << 28 < physical < 1 << 50
    groups, mounts, files, expected = CGROUPS[case]
    place = tmp_path / "a place"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "mountinfo").write_text(mounts.format(at=str(place).replace(" ", r"\040")) + "\n")
    assert memory_limit(tmp_path) == (expected or physical)


def test_memory_that_nobody_tells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_physical", lambda: None)
    assert memory_limit(tmp_path) is None
