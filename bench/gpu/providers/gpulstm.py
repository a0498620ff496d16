"""gpulstm: ``gpulstm.LSTM`` on the device by one walk; training is ``vjp`` and its pullback."""

from __future__ import annotations

import os
from typing import Any

import gpulstm
from gpulstm_kernels.backend import LayerShape
from gpulstm_kernels.cuda import select
from gpulstm_kernels.cuda.device.process import current

from ...problem import Runner
from ...registry import Case
from ..grid import Contender
from ..problem import Arrays, Problem, element


def misfit(case: Case, mode: str, contender: Contender) -> str | None:
    training = mode == "training"
    shape = LayerShape(
        gpulstm.cells.get("lstm"),
        steps=case.steps,
        batch=case.batch,
        inputs=case.hidden,
        hidden=case.hidden,
        outputs=case.hidden,
        directions=1,
        dtype=element(case.dtype),
        weights=element(case.dtype),
        training=training,
        bias=True,
        projected=False,
        ragged=False,
        tf32=case.dtype == "tf32",
    )
    runtime = current()
    try:
        for backward in (False, True)[: 1 + training]:
            select.choose(runtime.device(), shape, backward, runtime.walks_of(shape.cell), contender.walk)
    except ValueError as error:
        return str(error)
    return None


def inference(problem: Problem, contender: Contender) -> Runner:
    lstm, backend = _layer(problem, contender), contender.backend

    def outputs(result: Any) -> Arrays:
        y, (h, c) = result
        return {"y": y, "h": h, "c": c}

    return lambda: lstm(problem.x, backend=backend), outputs


def training(problem: Problem, contender: Contender) -> Runner:
    lstm, backend = _layer(problem, contender), contender.backend

    def call() -> Any:
        result, pullback = lstm.vjp(problem.x, backend=backend)
        return result, pullback(problem.dy)

    def outputs(result: Any) -> Arrays:
        (y, (h, c)), (dx, _, grads) = result
        return {"y": y, "h": h, "c": c, "dx": dx, **{f"d{name}": value for name, value in grads.items()}}

    return call, outputs


def _layer(problem: Problem, contender: Contender) -> gpulstm.LSTM:
    os.environ["GPULSTM_WALK"] = contender.walk
    case = problem.case
    gpulstm.allow_tf32(case.dtype == "tf32")
    lstm = gpulstm.LSTM(case.hidden, case.hidden, dtype=element(case.dtype), device="cuda", seed=0)
    lstm.params.update(problem.params)
    return lstm
