"""Training loops that are not ours: DistributedDataParallel over two processes, and Lightning's Trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ddp_worker
import numpy as np

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


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
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
