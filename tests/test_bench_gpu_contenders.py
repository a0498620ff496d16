"""Who is timed on a GPU, run on the CPU where that can be: what they return is right, and checked to be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpulstm
from bench.gpu import grid
from bench.gpu.problem import REQUIRED, TOLERANCE, Problem, check, element, truth
from bench.gpu.timing import LEAST, MOST, samples
from bench.gpu.worker import Session
from bench.registry import MODES, Case

TINY = Case(3, 6, 8)
TORCH = grid.CONTENDERS["torch"]


def test_the_truth_is_the_references() -> None:
    problem = Problem.of(np, TINY)
    lstm = gpulstm.LSTM(8, 8, dtype="float64")
    lstm.load_state_dict(problem.params)
    (y, (h, c)), pullback = lstm.vjp(problem.x.astype(float), backend="reference")
    dx, _, grads = pullback(problem.dy.astype(float))
    expected = {"y": y, "h": h, "c": c, "dx": dx, **{f"d{name}": value for name, value in grads.items()}}
    found = truth(np, problem)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12, err_msg=name)


def test_check_rejects_what_is_wrong_or_missing() -> None:
    expected = truth(np, Problem.of(np, TINY))
    good = {name: value.astype(np.float32) for name, value in expected.items()}

    def reason(outputs: dict[str, Any]) -> str:
        return str(check(np, TINY, "training", outputs, expected).reason)

    assert check(np, TINY, "training", good, expected).reason is None
    assert check(np, TINY, "inference", {"y": good["y"]}, expected).reason is None
    for name in REQUIRED["training"]:
        wrong = good[name].copy()
        wrong.flat[-1] += 2 * TOLERANCE["float32"] * np.abs(expected[name]).max()
        assert reason(good | {name: wrong}).startswith(f"{name}: relative error")
        wrong.flat[-1] = np.nan
        assert "NaN" in reason(good | {name: wrong})
        assert "expected float32" in reason(good | {name: good[name][..., :-1]})
        assert "expected float32" in reason(good | {name: good[name].astype(np.float16)})
        assert f"missing ['{name}']" in reason({key: value for key, value in good.items() if key != name})
    assert "unknown ['dz']" in reason(good | {"dz": good["y"]})


def session() -> Session:
    return Session(np, lambda call, calls: 1e-3 * calls, lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [dtype for dtype in grid.DTYPES if dtype != "bfloat16" or find_spec("ml_dtypes")])
def test_torch_is_checked_and_timed(dtype: str) -> None:
    case = asdict(Case(3, 6, 8, dtype))
    for mode in MODES:
        answer = session().measure(case, mode, "torch", 0.0)
        assert answer["deviation"] < TOLERANCE[dtype] / 2
        assert answer["samples"] == [pytest.approx(1e-3)] * LEAST


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu.providers import torch as provider

    def wrong(problem: Problem, contender: grid.Contender) -> Any:
        return lambda: None, lambda _: {"y": np.zeros_like(problem.x)}

    monkeypatch.setattr(provider, "inference", wrong)
    answer = session().measure(asdict(TINY), "inference", "torch", 0.0)
    assert answer["rejected"].startswith("y: relative error 1.0")
    assert "samples" not in answer


def test_what_does_not_fit_is_said() -> None:
    from bench.gpu.providers import torch as provider

    assert provider.misfit(TINY, "training", TORCH) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provider, "misfit", lambda *_: "too large")
        assert session().measure(asdict(TINY), "inference", "torch", 0.0) == {"misfit": "too large"}


def test_short_calls_are_timed_several_at_once() -> None:
    asked: list[int] = []

    def elapsed(call: Callable[[], Any], calls: int) -> float:
        asked.append(calls)
        return 1e-4 * calls

    found = samples(elapsed, lambda: None, 0.0)
    assert found == [pytest.approx(1e-4)] * LEAST
    assert asked == [1, 1, 1, *[20] * LEAST]
    assert len(samples(elapsed, lambda: None, 10.0)) == MOST


def planted(monkeypatch: pytest.MonkeyPatch, name: str, content: Any) -> None:
    """Let ``content`` be importable from a module called ``name``, and its provider be imported anew."""
    module = ModuleType(name)
    setattr(module, content.__name__, content)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, f"bench.gpu.providers.{name.split('_')[0]}", raising=False)


def walked(gates: Any, weight: Any, order: str) -> Any:
    """h of every step (T, B, H) from x's share of the gates (T, B, 4·H) and (4·H, H), gates in ``order``; in torch."""
    import torch

    hidden = weight.shape[1]
    h = c = gates.new_zeros(gates.shape[1], hidden)
    ys = []
    for own in gates:
        part = dict(zip(order, (own + h @ weight.T).split(hidden, dim=1), strict=True))
        c = torch.sigmoid(part["f"]) * c + torch.sigmoid(part["i"]) * torch.tanh(part["g"])
        h = torch.sigmoid(part["o"]) * torch.tanh(c)
        ys.append(h)
    return torch.stack(ys)


@pytest.mark.slow
def test_flashrnn_is_given_what_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documented shapes: (B, T, gates, heads, D), (gates, heads, D, previous D), (gates, heads, D)."""

    def flashrnn(Wx: Any, R: Any, b: Any, *, function: str, backend: str, dtype: str) -> Any:
        assert (function, backend, dtype) == ("lstm", "cuda_fused", "float16")
        assert Wx.is_contiguous()
        batch, steps, _, heads, size = Wx.shape
        assert (heads, R.shape, b.shape) == (1, (4, 1, size, size), (4, 1, size))
        gates = (Wx + b).transpose(0, 1).reshape(steps, batch, 4 * size)
        y = walked(gates, R.reshape(4 * size, size), "ifgo")
        states = y.transpose(0, 1)[None, :, :, None]  # (states, B, T, heads, D)
        return states, states[:, :, -1:]

    planted(monkeypatch, "flashrnn", flashrnn)
    case = asdict(Case(3, 6, 8, "float16"))
    for mode in MODES:
        assert "samples" in session().measure(case, mode, "flashrnn", 0.0)
    answer = session().measure(asdict(TINY), "inference", "flashrnn", 0.0)
    assert answer == {"misfit": "its fused kernels multiply half types"}


@pytest.mark.slow
def test_haste_is_given_what_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documented parameters: kernel (I, 4·H), recurrent_kernel (H, 4·H), bias (4·H), gates i, g, f, o."""
    import torch

    class LSTM(torch.nn.Module):
        def __init__(self, input_size: int, hidden_size: int) -> None:
            super().__init__()
            self.kernel = torch.nn.Parameter(torch.empty(input_size, 4 * hidden_size))
            self.recurrent_kernel = torch.nn.Parameter(torch.empty(hidden_size, 4 * hidden_size))
            self.bias = torch.nn.Parameter(torch.empty(4 * hidden_size))

        def forward(self, x: torch.Tensor) -> Any:
            return walked(x @ self.kernel + self.bias, self.recurrent_kernel.T, "igfo"), None

    planted(monkeypatch, "haste_pytorch", LSTM)
    for mode in MODES:
        assert "samples" in session().measure(asdict(TINY), mode, "haste", 0.0)
    half = asdict(Case(3, 6, 8, "float16"))
    assert session().measure(half, "inference", "haste", 0.0) == {"misfit": "it computes in float32"}


def test_elements_of_a_case() -> None:
    assert element("tf32") == np.float32
    assert element("float16") == np.float16
