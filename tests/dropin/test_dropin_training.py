"""Training loops: DistributedDataParallel over two processes, around our trainer too, and Lightning's Trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ddp_worker
import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def start(*arguments: str) -> subprocess.Popen[str]:
    """A Python process that finds gpulstm whether it is installed or not."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_and_train_as_one(tmp_path: Path) -> None:
    script = str(HERE / "ddp_worker.py")
    processes = [start(script, str(rank), str(tmp_path)) for rank in range(ddp_worker.WORLD)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    model = ddp_worker.Model()
    model(ddp_worker.batch()).sin().mean().backward()
    for rank in range(ddp_worker.WORLD):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert sorted(found) == sorted(name for name, _ in model.named_parameters())
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-12, atol=1e-15, err_msg=name)
    expected = ddp_worker.trained(ddp_worker.Model(), slice(None))
    for rank in range(ddp_worker.WORLD):
        with np.load(tmp_path / f"trained-{rank}.npz") as found:
            assert sorted(found) == sorted(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", 1e-4), ("bf16-mixed", 5e-2)])
def test_lightnings_trainer(precision: str, tolerance: float) -> None:
    process = start(str(HERE / "lightning_worker.py"), precision)  # on its own, since its imports warn
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    theirs, ours = json.loads(output.strip().splitlines()[-1])
    assert len(ours) == 24
    np.testing.assert_allclose(ours, theirs, rtol=tolerance)
    assert np.mean(ours[-8:]) < np.mean(ours[:8])
