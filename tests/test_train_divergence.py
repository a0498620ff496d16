"""A loss, a gradient or a metric that is not finite or beyond all sense: the run ends before it does harm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from training_task import Task, assert_same, everything, make, rows

from gpulstm import optim
from gpulstm.train import Trainer, TrainingDiverged, checkpoint


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_divergence_stops_before_the_update(tmp_path, value, kind):
    task = Task()
    trainer = make(tmp_path, task, save_every=2)
    before: dict[str, np.ndarray] = {}

    def fail(number: int, loss: float, gradient: Any) -> Any:
        if number < 6:
            return loss, gradient
        before.update(everything(trainer))
        if kind == "loss":
            return value, gradient
        gradient[0, 0, 0] = value
        return loss, gradient

    task.on_loss = fail
    cause = f"the loss is {value}" if kind == "loss" else "the norm of the gradient is (nan|inf)"
    with pytest.raises(TrainingDiverged, match=f"training diverged after step 5: {cause}") as caught:
        trainer.run(steps=10)
    assert "the last good checkpoint is" in str(caught.value)
    assert "step-00000004" in str(caught.value)
    assert "lower learning rate" in str(caught.value)
    assert_same(everything(trainer), before)
    assert checkpoint.load(tmp_path).step == 4
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_parameters_that_overflow_are_not_saved(tmp_path):
    trainer = make(tmp_path, Task(optimizer="sgd"), optim.Constant(3e38), clip=1e30, save_every=1)
    trainer.task.on_loss = lambda number, loss, gradient: (loss, gradient * np.float32(1e4))
    with pytest.raises(TrainingDiverged, match=r"parameter '.*' is not finite.*step-00000000"):
        trainer.run(steps=5)
    assert checkpoint.load(tmp_path).step == 0


def test_a_validation_that_is_not_finite(tmp_path):
    trainer = make(tmp_path, validate_every=3)
    trainer.task.validations = [1.0, math.nan]
    with pytest.raises(TrainingDiverged, match="after step 6: the validation loss is nan"):
        trainer.run(steps=10)


def test_an_absurd_loss_ends_the_run(tmp_path):
    task = Task()
    task.chance = 2.0
    trainer = make(tmp_path, task, save_every=2)
    task.on_loss = lambda number, loss, gradient: (199.0 if number < 5 else 201.0, gradient)
    with pytest.raises(TrainingDiverged, match="after step 4: the loss is 201, expected at most 200, 100 times that"):
        trainer.run(steps=10)
    assert checkpoint.load(tmp_path).step == 4

    def both(number: int, loss: float, gradient: Any) -> Any:
        gradient[0, 0, 0] = math.inf
        return 201.0, gradient

    task.on_loss = both
    with pytest.raises(TrainingDiverged, match=r"the norm of the gradient is (nan|inf), the loss 201, expected"):
        make(None, task).run(steps=1)
    trainer = make(None, task, validate_every=1)
    task.on_loss, task.validations = None, [201.0]
    with pytest.raises(TrainingDiverged, match="after step 1: the validation loss is 201, expected at most 200"):
        trainer.run(steps=10)
    task.chance = "x"
    with pytest.raises(TypeError, match=r"task: chance: expected a number in \(0, inf\], got 'x'"):
        make(None, task)


def test_a_metric_that_json_cannot_hold(tmp_path):
    def trainer() -> Trainer:
        made = make(tmp_path, validate_every=1)
        made.task.validate = lambda: {"loss": 1.0, "perplexity": math.inf}
        return made

    assert trainer().run(steps=1).validation["perplexity"] == math.inf
    assert "validation_perplexity" not in rows(tmp_path)[0]
    resumed = trainer()
    resumed.resume(checkpoint.load(tmp_path))
    assert math.isnan(resumed.validation["perplexity"])
    resumed.run(steps=2)
