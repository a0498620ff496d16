"""What the machine has, and where that cannot be known."""

from __future__ import annotations

from gpulstm import machine


def test_memory_is_the_least_of_all_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", ())
    physical = machine.memory()
    assert physical is not None
    assert 1 << 28 < physical < 1 << 50
    for content, expected in (("max\n", physical), ("123456789\n", 123456789), (f"{1 << 63}\n", physical)):
        (tmp_path / "limit").write_text(content)
        monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
        assert machine.memory() == expected
    monkeypatch.setattr(machine, "_physical", lambda: None)
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", ())
    assert machine.memory() is None
