"""The tests of the kernels again, with sanitizers watching and threads in an order drawn by seed."""

from __future__ import annotations

import re

import pytest

from . import lanes

pytestmark = pytest.mark.emulator

FILES = "primitives", "layer", "cell_inputs", "network", "training", "ctc_device"
TESTS = [f"tests/cuda/test_{what}.py" for what in FILES]


@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
def test_kernels_are_clean(sanitizer: str) -> None:
    arguments = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "emulator", *TESTS]
    found = "" if sanitizer == "plain" else sanitizer
    done = lanes.run(sanitizer, arguments, EMULATOR_SANITIZER=found, EMULATOR_SEED="7")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 130, done.stdout[-2000:]
