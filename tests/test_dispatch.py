"""Which backend computes a call: probes, the order of choice, and what is said about it."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import problems
import pytest

import gpulstm
from gpulstm import dispatch
from gpulstm_kernels import reference
from gpulstm_kernels.backend import LayerShape
from gpulstm_kernels.cpu import layer as cpu_layer
from gpulstm_kernels.cpu import tuning
from gpulstm_kernels.cpu.crew.thread_pool import crew

X = np.zeros((3, 2, 4), np.float32)


@pytest.fixture(autouse=True)
def _no_choice_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GPULSTM_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_for_process", None)
    yield
    dispatch._why_not.cache_clear()
    dispatch._that_run.cache_clear()
    dispatch._automatic.cache_clear()


def without(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    """Let the probe of ``name`` fail."""
    broken = replace(dispatch._BACKENDS[name], probe=lambda: reason)
    monkeypatch.setitem(dispatch._BACKENDS, name, broken)
    dispatch._why_not.cache_clear()
    dispatch._that_run.cache_clear()
    dispatch._automatic.cache_clear()


def chosen() -> str:
    return dispatch.select()[0].name


def test_every_backend_has_a_reason_or_runs() -> None:
    reasons = gpulstm.backends()
    assert set(reasons) == {"cupy", "numba_cuda", "numba_cpu", "reference"}
    assert reasons["numba_cpu"] is None
    assert reasons["reference"] is None
    assert "CuPy" in (reasons["cupy"] or "") or "CUDA device" in (reasons["cupy"] or "")
    assert "cuda" in (reasons["numba_cuda"] or "").lower()


def test_a_probe_that_fails_to_import_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "numba.cuda", None)
    monkeypatch.setitem(sys.modules, "gpulstm_kernels.cpu.layer", None)
    dispatch._why_not.cache_clear()
    dispatch._that_run.cache_clear()
    dispatch._automatic.cache_clear()
    reasons = gpulstm.backends()
    assert "CuPy could not be imported" in (reasons["cupy"] or "")
    assert "install gpulstm[cuda13] or gpulstm[cuda12]" in (reasons["cupy"] or "")
    assert "numba.cuda could not be imported" in (reasons["numba_cuda"] or "")
    assert "Numba could not be imported" in (reasons["numba_cpu"] or "")


def test_order_of_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """backend=, then with, then set_backend, then the environment, then the first that runs."""
    assert dispatch.select()[0].name == "numba_cpu"
    assert "chosen automatically" in dispatch.select()[1]
    monkeypatch.setenv("GPULSTM_BACKEND", "reference")
    assert chosen() == "reference"
    assert "environment variable GPULSTM_BACKEND" in dispatch.select()[1]
    gpulstm.set_backend("numba_cpu")
    assert chosen() == "numba_cpu"
    assert dispatch.select()[1] == "asked for by set_backend"
    with gpulstm.use_backend("reference"):
        assert chosen() == "reference"
        assert dispatch.select()[1] == "asked for by `with use_backend`"
        backend, why = dispatch.select(backend="numba_cpu")
        assert (backend.name, why) == ("numba_cpu", "asked for by backend=")
        with gpulstm.use_backend(None):
            assert "chosen automatically" in dispatch.select()[1]
    gpulstm.set_backend(None)
    assert chosen() == "reference"  # the environment's again
    monkeypatch.setenv("GPULSTM_BACKEND", "")
    assert chosen() == "numba_cpu"


def test_with_blocks_nest_and_end_on_exceptions() -> None:
    with gpulstm.use_backend("reference"):
        with gpulstm.use_backend("numba_cpu"):
            assert chosen() == "numba_cpu"
        assert chosen() == "reference"
        with pytest.raises(ZeroDivisionError), gpulstm.use_backend("numba_cpu"):
            _ = 1 / 0
        assert chosen() == "reference"
    assert chosen() == "numba_cpu"
    assert "chosen automatically" in dispatch.select()[1]


def test_a_with_block_leaves_the_choice_for_the_process_alone() -> None:
    gpulstm.set_backend("reference")
    with gpulstm.use_backend("numba_cpu"):
        assert dispatch._for_process == "reference"
    assert chosen() == "reference"


def test_a_with_block_holds_in_its_thread_only() -> None:
    seen = []
    with gpulstm.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
    gpulstm.set_backend("reference")
    thread = threading.Thread(target=lambda: seen.append(chosen()))
    thread.start()
    thread.join()
    assert seen == ["numba_cpu", "reference"]


def test_no_moment_of_a_with_block_is_another_threads() -> None:
    """Not even between making the context manager and entering it: a thread looks on at every line that runs."""
    seen: list[object] = []

    def look(frame: object, event: str, argument: object) -> object:
        seen.append(dispatch._for_process)
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(chosen).result())
        return look

    def run() -> None:
        with gpulstm.use_backend("reference"), gpulstm.use_backend(None):
            pass

    sys.settrace(look)
    try:
        run()
    finally:
        sys.settrace(None)
    assert len(seen) > 20
    assert set(seen) == {None, "numba_cpu"}


def test_one_context_manager_serves_several_blocks_and_threads() -> None:
    reference = gpulstm.use_backend("reference")
    with reference, gpulstm.use_backend("numba_cpu"), reference:
        assert chosen() == "reference"
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(chosen).result() == "numba_cpu"
            pool.submit(reference.__enter__).result()
            assert pool.submit(chosen).result() == "reference"
            pool.submit(reference.__exit__, None, None, None).result()
            assert pool.submit(chosen).result() == "numba_cpu"
        assert chosen() == "reference"
    assert chosen() == "numba_cpu"


def test_blocks_that_end_in_another_order_or_context() -> None:
    """As those of generators may: each takes its own choice with it."""

    def within(name: str) -> Iterator[None]:
        with gpulstm.use_backend(name):
            yield

    first, second = within("reference"), within("numba_cpu")
    next(first)
    next(second)
    first.close()
    assert chosen() == "numba_cpu"
    assert dispatch.select()[1] == "asked for by `with use_backend`"
    contextvars.Context().run(second.close)  # which knows of no block
    third = within("reference")
    contextvars.copy_context().run(next, third)
    third.close()
    assert dispatch.select()[1] == "asked for by `with use_backend`"
    dispatch._in_context.set(())


def test_a_context_manager_that_is_not_entered_changes_nothing_and_says_so() -> None:
    message = r"use_backend\('reference'\), for `with`; set_backend is for the whole process: not entered"
    with pytest.warns(RuntimeWarning, match=message):
        gpulstm.use_backend("reference")
    assert chosen() == "numba_cpu"
    with pytest.raises(TypeError):
        gpulstm.use_backend()  # type: ignore[call-arg]


def test_the_choice_reaches_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = reference.layer_forward
    monkeypatch.setattr(reference, "layer_forward", lambda *args: calls.append(1) or forward(*args))
    lstm = gpulstm.LSTM(4, 5, seed=0)
    lstm(X)
    assert not calls
    lstm(X, backend="reference")
    with gpulstm.use_backend("reference"):
        lstm(X)
        _, pullback = lstm.vjp(X)
    assert len(calls) == 3
    pullback(None, None)  # the backend that made the tape, whatever is chosen now
    lstm(X)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "ask", [gpulstm.set_backend, gpulstm.use_backend, lambda name: gpulstm.LSTM(4, 5)(X, backend=name)]
)
def test_an_unknown_backend_lists_the_known_ones(ask: object, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "backend: unknown backend 'tpu'; known backends: cupy, numba_cpu, numba_cuda, reference"
    with pytest.raises(ValueError, match=message):
        ask("tpu")  # type: ignore[operator]
    assert chosen() == "numba_cpu"
    monkeypatch.setenv("GPULSTM_BACKEND", "tpu")
    with pytest.raises(ValueError, match=message):
        gpulstm.LSTM(4, 5)(X)


def test_an_unavailable_backend_raises_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "cupy", "the moon is full")
    gpulstm.set_backend("reference")
    message = "backend: 'cupy' cannot run here: the moon is full"
    with pytest.raises(gpulstm.BackendUnavailable, match=message):
        gpulstm.set_backend("cupy")
    assert chosen() == "reference"  # as it was
    with pytest.raises(gpulstm.BackendUnavailable, match=message), gpulstm.use_backend("cupy"):
        pass
    assert chosen() == "reference"
    with pytest.raises(gpulstm.BackendUnavailable, match=message):
        gpulstm.LSTM(4, 5)(X, backend="cupy")
    gpulstm.set_backend(None)
    monkeypatch.setenv("GPULSTM_BACKEND", "cupy")
    with pytest.raises(gpulstm.BackendUnavailable, match=message):
        gpulstm.LSTM(4, 5)(X)


def test_a_backend_of_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._BACKENDS, "cupy", replace(dispatch._BACKENDS["cupy"], probe=lambda: None))
    dispatch._why_not.cache_clear()
    dispatch._that_run.cache_clear()
    dispatch._automatic.cache_clear()
    with pytest.raises(ValueError, match="backend: 'cupy' computes on cuda, but the arrays are on cpu"):
        gpulstm.LSTM(4, 5)(X, backend="cupy")


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "cupy", "no cat")
    without(monkeypatch, "numba_cuda", "no dog")
    message = "device: no backend can run on 'cuda': cupy: no cat; numba_cuda: no dog"
    with pytest.raises(gpulstm.BackendUnavailable, match=message):
        gpulstm.LSTM(4, 5, device="cuda")
    lstm = gpulstm.LSTM(4, 5, device="cpu")
    with pytest.raises(gpulstm.BackendUnavailable, match=message):
        lstm.to("cuda")
    assert lstm.to("cpu") is lstm
    assert lstm.device == "cpu"
    for ask in (lstm.to, lambda device: gpulstm.LSTM(4, 5, device=device)):
        with pytest.raises(ValueError, match="device: expected 'cpu' or 'cuda', got 'tpu'"):
            ask("tpu")


def test_automatic_choice_is_logged_once_with_its_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "gpulstm")
    dispatch._that_run.cache_clear()
    dispatch._automatic.cache_clear()
    lstm = gpulstm.LSTM(4, 5)
    for _ in range(3):
        lstm(X)
    assert [record.getMessage() for record in caplog.records] == [
        "backend numba_cpu, chosen automatically: the first backend that runs on cpu"
    ]
    caplog.clear()
    without(monkeypatch, "numba_cpu", "Numba is on holiday")  # a broken backend is not passed over in silence
    for _ in range(3):
        lstm(X)
    assert [record.getMessage() for record in caplog.records] == [
        "backend reference, chosen automatically: the first backend that runs on cpu; "
        "numba_cpu passed over: Numba is on holiday"
    ]
    caplog.clear()
    lstm(X, backend="reference")
    assert not caplog.records


def test_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = gpulstm.LSTM(4, 5, seed=0)
    lines = gpulstm.explain(lstm, X).splitlines()
    assert lines[0] == "numba_cpu: chosen automatically: the first backend that runs on cpu"
    assert lines[1].startswith("  cell lstm, float32, first layer: sequence walk, weights ")
    assert "one thread" in lines[1]
    assert "reference: not used" in lines
    assert any(line.startswith("cupy: not used; cannot run here: ") for line in lines)
    assert any(line.startswith("numba_cuda: not used; cannot run here: ") for line in lines)
    with gpulstm.use_backend("reference"):
        text = gpulstm.explain(gpulstm.RNN(4, 5, dtype="float64"), X.astype(np.float64))
    assert text.startswith(
        "reference: asked for by `with use_backend`\n  cell rnn, float64, first layer: NumPy in float"
    )
    assert gpulstm.explain(lstm, X, backend="reference").startswith("reference: asked for by backend=")
    with pytest.raises(ValueError, match="x: expected shape"):
        gpulstm.explain(lstm, X[0, 0])
    with pytest.raises(TypeError, match=r"layer: expected a recurrent layer such as gpulstm\.LSTM, got Linear"):
        gpulstm.explain(gpulstm.nn.Linear(4, 5), X)  # type: ignore[arg-type]


def refusing(monkeypatch: pytest.MonkeyPatch, module: object, why_not: Callable[[LayerShape], str | None]) -> None:
    """Let the backend that is ``module`` have reasons of its own."""
    monkeypatch.setattr(module, "why_not", why_not)


def test_explain_says_why_a_backend_that_runs_was_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, cpu_layer, lambda shape: "Mondays")
    lines = gpulstm.explain(gpulstm.LSTM(4, 5), X).splitlines()
    assert lines[0].startswith("reference: chosen automatically")
    assert "numba_cpu: not used; cannot compute this: Mondays" in lines
    assert lines[-1].startswith("measure it: ")


def test_explain_of_narrow_parameters_names_no_benchmark() -> None:
    """Which would measure another computation."""
    lstm = gpulstm.LSTM(4, 5, seed=0)
    lstm.params = gpulstm.quantize(lstm, "bf16").params
    text = gpulstm.explain(lstm, X)
    assert "reference: not used; cannot compute this: it has no weights in uint16" in text.splitlines()
    assert "measure it" not in text


@pytest.mark.parametrize("training", [False, True])
def test_every_layer_of_a_stack_is_asked_for(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the layers above the first have other inputs, they are calls of another shape."""
    asked = []
    monkeypatch.setattr(reference, "layer_forward", lambda *args: pytest.fail("computed"))
    refusing(monkeypatch, reference, lambda shape: asked.append(shape.inputs) or ("wide" if shape.inputs > 4 else None))
    lstm = gpulstm.LSTM(4, 5, num_layers=2)
    message = "backend: 'reference' cannot compute this: wide; expected another backend"
    with pytest.raises(gpulstm.BackendUnavailable, match=message):
        (lstm.vjp if training else lstm)(X, backend="reference")
    assert asked == [4, 5]


def test_narrow_parameters_that_no_kernel_takes_are_refused_with_the_reason() -> None:
    lstm = gpulstm.LSTM(4, 5, seed=0)
    lstm.params = gpulstm.quantize(lstm, "bf16").params
    message = "weight_ih_l0: expected floating-point parameters, got uint16: it has no weights in uint16"
    with pytest.raises(TypeError, match=message):
        lstm(X, backend="reference")
    with gpulstm.use_backend("reference"), pytest.raises(TypeError, match=message):
        lstm.stream()


def test_a_stream_runs_where_the_automatic_choice_has_not_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, cpu_layer, lambda shape: f"it has no cell {shape.cell.name}")
    monkeypatch.setattr(cpu_layer, "stream", lambda *args: pytest.fail("streamed"))
    lstm = gpulstm.LSTM(4, 5, seed=0)
    np.testing.assert_array_equal(lstm.stream(2)(X[0]), lstm(X[:1], backend="reference")[0][0])


def test_explain_names_threads_and_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, x = gpulstm.LSTM(4, 300, seed=0), np.zeros((5, 40, 4), np.float32)
    monkeypatch.setattr(crew, "_alone_until", 0.0)
    with problems.threads(2, "batch"):
        assert "packed into register tiles, 2 threads over the batch" in gpulstm.explain(lstm, x)
    with problems.threads(2, "units"):
        assert "2 threads over the units" in gpulstm.explain(lstm, x)
        assert "read in place (few rows)" in gpulstm.explain(lstm, x[:1, :3])


def test_explain_says_that_shares_which_wait_run_on_one_thread_where_cores_are_oversubscribed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lstm, x = gpulstm.LSTM(4, 300, seed=0), np.zeros((5, 40, 4), np.float32)
    monkeypatch.setattr(crew, "_alone_until", math.inf)
    with problems.threads(2, "units"):
        assert "tiles, one thread (the cores are oversubscribed), " in gpulstm.explain(lstm, x)
    with problems.threads(2, "batch"):  # nothing waits
        assert "2 threads over the batch" in gpulstm.explain(lstm, x)
    with problems.threads(1, "units"):
        assert "tiles, one thread, " in gpulstm.explain(lstm, x)
    with problems.threads(2), tuning.replaced(step_per_thread=1):
        assert "one step, weights read in place (few rows), 2 threads over the units" in gpulstm.explain(
            lstm, x[:1, :3]
        )


def test_importing_imports_little() -> None:
    """No Numba, GPU library, torch, CLI or progress bar comes with the package or with making a layer."""
    script = (
        "import sys, gpulstm; gpulstm.LSTM(2, 3);"
        "heavy = {'numba', 'llvmlite', 'cupy', 'torch', 'attr', 'attrs', 'click', 'tqdm', 'matplotlib', 'safetensors'};"
        "heavy |= {'tensorboardX'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_environment_variable_in_a_fresh_process() -> None:
    script = "import gpulstm, numpy as np; print(gpulstm.explain(gpulstm.LSTM(2, 3), np.zeros((1, 1, 2), 'f4')))"
    environment = _environment() | {"GPULSTM_BACKEND": "reference"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.stderr == ""
    assert result.stdout.startswith("reference: asked for by the environment variable GPULSTM_BACKEND")


def _environment() -> dict[str, str]:
    """This process's, with the paths under test."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def said_by(script: str, **environment: str) -> list[str]:
    """What a fresh interpreter prints; it may not hang."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=_environment() | {"GPULSTM_BACKEND": ""} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_where_numba_may_not_compile_everything_computes_with_numpy() -> None:
    """Layers, models, quantized ones and streams."""
    script = """
        import logging, sys
        import numpy as np
        import gpulstm

        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        x = np.ones((3, 2, 4), np.float32)
        lstm = gpulstm.LSTM(4, 5, seed=0)
        model = gpulstm.nn.Sequential(lstm, gpulstm.nn.Linear(5, 3, seed=1))
        (y, _), pullback = model.vjp(x)
        _, _, grads = pullback(np.ones_like(y))
        h, p = lstm(x, backend="reference")[0], model.params
        print(np.abs(y - (h @ p["1.weight"].T + p["1.bias"])).max() < 1e-6)
        print(np.abs(grads["1.weight"] - h.sum((0, 1))).max() < 1e-5, np.abs(grads["1.bias"] - 6).max() < 1e-6)
        for layer in (gpulstm.quantize(lstm, "int8"), gpulstm.quantize(lstm, "bf16"), lstm):
            print(np.abs(layer(x)[0] - h).max() < 1e-2, np.abs(layer.stream(2)(x[0]) - h[0]).max() < 1e-2)
        print(gpulstm.get_num_threads() > 0)
        try:
            lstm(x, backend="numba_cpu")
        except gpulstm.BackendUnavailable as error:
            print(error)
    """
    reason = "NUMBA_DISABLE_JIT is set, so that Numba compiles nothing"
    assert said_by(script, NUMBA_DISABLE_JIT="1") == [
        f"backend reference, chosen automatically: the first backend that runs on cpu; numba_cpu passed over: {reason}",
        "True",
        *["True True"] * 4,
        "True",
        f"backend: 'numba_cpu' cannot run here: {reason}; expected one that can: reference",
    ]


def test_a_subinterpreter_computes_without_numba() -> None:
    """Its machine code would wait there for a lock that never comes."""
    inside = """
        import sys
        import numpy as np
        import gpulstm

        lstm, x = gpulstm.LSTM(2, 3, seed=0), np.ones((2, 2, 2), np.float32)
        print(lstm(x)[0].shape, gpulstm.explain(lstm, x).splitlines()[0], "numba" in sys.modules)
        print(gpulstm.backends()["numba_cpu"], flush=True)
    """
    script = f"""
        try:
            import _interpreters as interpreters

            number = interpreters.create("legacy")
        except ImportError:
            import _xxsubinterpreters as interpreters

            number = interpreters.create(isolated=False)
        failed = interpreters.run_string(number, {textwrap.dedent(inside)!r})
        assert failed is None, failed
    """
    assert said_by(script) == [
        "(2, 2, 3) reference: chosen automatically: the first backend that runs on cpu False",
        "Numba's machine code asks for the main interpreter's lock, and would wait for ever in a subinterpreter",
    ]
