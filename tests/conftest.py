"""Prints the worst errors of a run beside their tolerances (``pytest -v``)."""

from __future__ import annotations

import pytest
import tolerances


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.verbose > 0 or not tolerances.worst:
        return
    terminalreporter.section("worst errors")
    for line, found in sorted(tolerances.worst.items()):
        what, dtype = line
        terminalreporter.write_line(f"{what:12} {dtype}  {found:.2g} of {tolerances.TOLERANCES[line]:.2g} allowed")
