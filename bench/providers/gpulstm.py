"""gpulstm: a recurrent layer, NumPy in and out; training is ``vjp`` and its pullback.

A single step of inference is timed as one has it, in a stream: ``layer.stream()``, which owns the state as the bound
buffers of others do.
"""

from __future__ import annotations

from typing import Any

import gpulstm

from ..problem import Outputs, Problem, Runner, alone, named


def setup(threads: int) -> None:
    gpulstm.set_num_threads(threads)


def inference(problem: Problem, kind: str | None = None, *, streams: bool = True) -> Runner:
    """``streams``: whether a single step is one of a stream."""
    made = layer(problem) if kind is None else gpulstm.quantize(layer(problem), kind)
    x, state, case, given = problem.x, alone(problem.state), problem.case, further(problem)
    if streams and case.steps == 1 and case.directions == 1 and not given:
        stream, (step,) = made.stream(case.batch, state), x

        def first_step(_: Any) -> Outputs:
            stream.reset(state)
            y = stream(step)[None].copy()
            return {"y": y, **named(case, stream.state)}

        return lambda: stream(step), first_step

    def outputs(result: Any) -> Outputs:
        y, final = result
        return {"y": y, **named(case, final)}

    return lambda: made(x, state, **given), outputs


def training(problem: Problem) -> Runner:
    made = layer(problem)
    x, state, case, given = problem.x, alone(problem.state), problem.case, further(problem)
    dy, dstate = problem.dy, alone(problem.dstate)

    def call() -> Any:
        result, pullback = made.vjp(x, state, **given)
        return result, pullback(dy, dstate)

    def outputs(result: Any) -> Outputs:
        (y, final), (dx, initial, grads) = result
        gradients = {f"d{name}": value for name, value in grads.items()}
        return {"y": y, **named(case, final), "dx": dx, **named(case, initial, "d", "0"), **gradients}

    return call, outputs


def further(problem: Problem) -> dict[str, Any]:
    """Arguments of a call beside x and the state, where there are any."""
    given: dict[str, Any] = {"inputs": problem.inputs} if problem.inputs else {}
    return given if problem.resets is None else given | {"resets": problem.resets}


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
        heads=case.heads,
        dtype=case.dtype,
        seed=0,
    )
    made.load_state_dict(problem.params)
    return made
