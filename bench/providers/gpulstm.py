"""gpulstm: ``gpulstm.LSTM``, NumPy in and out; training is ``vjp`` and its pullback.

A single step of inference is timed as one has it, in a stream: ``lstm.stream()``, which owns the state as the bound
buffers of others do.
"""

from __future__ import annotations

from typing import Any

import gpulstm

from ..problem import Outputs, Problem, Runner


def setup(threads: int) -> None:
    gpulstm.set_num_threads(threads)


def inference(problem: Problem, kind: str | None = None) -> Runner:
    lstm = layer(problem) if kind is None else gpulstm.quantize(layer(problem), kind)
    x, state = problem.x, (problem.h0, problem.c0)
    if problem.case.steps == 1:
        stream, (step,) = lstm.stream(problem.case.batch, state), x

        def first_step(_: Any) -> Outputs:
            stream.reset(state)
            y = stream(step)[None].copy()
            h, c = stream.state
            return {"y": y, "h": h, "c": c}

        return lambda: stream(step), first_step

    def outputs(result: Any) -> Outputs:
        y, (h, c) = result
        return {"y": y, "h": h, "c": c}

    return lambda: lstm(x, state), outputs


def training(problem: Problem) -> Runner:
    lstm = layer(problem)
    x, state = problem.x, (problem.h0, problem.c0)
    dy, dstate = problem.dy, (problem.dh, problem.dc)

    def call() -> Any:
        result, pullback = lstm.vjp(x, state)
        return result, pullback(dy, dstate)

    def outputs(result: Any) -> Outputs:
        (y, (h, c)), (dx, (dh0, dc0), grads) = result
        gradients = {f"d{name}": value for name, value in grads.items()}
        return {"y": y, "h": h, "c": c, "dx": dx, "dh0": dh0, "dc0": dc0, **gradients}

    return call, outputs


def layer(problem: Problem) -> gpulstm.LSTM:
    lstm = gpulstm.LSTM(problem.case.hidden, problem.case.hidden, dtype=problem.case.dtype, seed=0)
    lstm.load_state_dict(problem.params)
    return lstm
