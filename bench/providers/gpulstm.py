"""gpulstm: ``gpulstm.LSTM``, NumPy in and out; training is ``vjp`` and its pullback.

A single step of inference is timed as one has it, in a stream: ``lstm.stream()``, which owns the state as the bound
buffers of others do.
"""

from __future__ import annotations

from typing import Any

import gpulstm

from ..problem import Outputs, Problem, Runner, alone, named


def setup(threads: int) -> None:
    gpulstm.set_num_threads(threads)


def inference(problem: Problem, kind: str | None = None) -> Runner:
    lstm = layer(problem) if kind is None else gpulstm.quantize(layer(problem), kind)
    x, state, case = problem.x, alone(problem.state), problem.case
    if case.steps == 1 and case.directions == 1:
        stream, (step,) = lstm.stream(case.batch, state), x

        def first_step(_: Any) -> Outputs:
            stream.reset(state)
            y = stream(step)[None].copy()
            return {"y": y, **named(case, stream.state)}

        return lambda: stream(step), first_step

    def outputs(result: Any) -> Outputs:
        y, final = result
        return {"y": y, **named(case, final)}

    return lambda: lstm(x, state), outputs


def training(problem: Problem) -> Runner:
    lstm = layer(problem)
    x, state, case = problem.x, alone(problem.state), problem.case
    dy, dstate = problem.dy, alone(problem.dstate)

    def call() -> Any:
        result, pullback = lstm.vjp(x, state)
        return result, pullback(dy, dstate)

    def outputs(result: Any) -> Outputs:
        (y, final), (dx, initial, grads) = result
        gradients = {f"d{name}": value for name, value in grads.items()}
        return {"y": y, **named(case, final), "dx": dx, **named(case, initial, "d", "0"), **gradients}

    return call, outputs


def layer(problem: Problem) -> gpulstm.nn.Recurrent:
    case = problem.case
    made = gpulstm.nn.Recurrent(
        case.cell,
        case.features,
        case.hidden,
        case.layers,
        bias=bool(case.bias),
        bidirectional=case.directions == 2,
        proj_size=case.projection,
        dtype=case.dtype,
        seed=0,
    )
    made.load_state_dict(problem.params)
    return made
