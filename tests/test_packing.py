"""Packed weights are kept until what they were packed from changes, in whatever element."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
import torch

import gpulstm
import gpulstm.torch
from gpulstm_kernels import memory
from gpulstm_kernels.cpu import tuning
from gpulstm_kernels.cpu.packing import cache, layouts


def packed(*weights: np.ndarray) -> tuple[np.ndarray, ...]:
    source = cache.source_of(weights)
    return cache.cached(source, "columns", lambda: tuple(layouts.columns(weight) for weight in weights))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_change_of_one_bit_anywhere_is_seen(dtype: str, threads: int) -> None:
    rng = np.random.default_rng(0)
    weight, other = (rng.standard_normal((37, columns)).astype(dtype) for columns in (101, 40))  # with a rest each
    contents = [array.reshape(-1).view(np.uint8) for array in (weight, other)]
    one_each = tuning.replaced(pack_per_thread=1, digest_per_thread=1, digest_segment=4096)
    with problems.threads(threads), one_each:
        before = packed(weight, other)
        assert packed(weight, other) is before
        for content in contents:
            for place in [0, content.size - 1, *rng.integers(0, content.size, 60)]:
                content[place] ^= 1 << rng.integers(8)
                after = packed(weight, other)
                assert after is not before
                for found, array in zip(after, (weight, other), strict=True):
                    np.testing.assert_array_equal(found, layouts.columns(array))
                before = after


@pytest.mark.parametrize("kind", ["uint16", "int8"])
def test_narrow_weights_of_any_size_are_digested(kind: str) -> None:
    for rows, columns in ((1, 1), (3, 7), (5, 301)):
        weight = np.arange(rows * columns).reshape(rows, columns).astype(kind)
        before = cache.cached(cache.source_of((weight,)), None, lambda w=weight: (w.copy(),))
        assert cache.cached(cache.source_of((weight,)), None, tuple) is before
        weight[-1, -1] ^= 1
        assert cache.cached(cache.source_of((weight,)), None, tuple) == ()


def test_exchanged_elements_are_seen() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 2048)).astype("f4")
    half = weight.size // 2
    for a, b in (
        (0, 1),
        (0, 16),
        (0, 256),
        (5, 4095),
        (0, tuning.current.digest_segment // 4),
        (7, half),
    ):  # of one lane and chain too
        before = packed(weight)
        flat = weight.reshape(-1)
        flat[a], flat[b] = flat[b], flat[a]
        assert packed(weight) is not before
    before = packed(weight)
    flat[:half], flat[half:] = flat[half:].copy(), flat[:half].copy()
    assert packed(weight) is not before


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = cache._Cache()
    monkeypatch.setattr(cache, "_cache", bounded)
    weights = [np.full((16, 16), k, np.float32) for k in range(5)]
    with tuning.replaced(cache_entries=3):
        of_each = [packed(weight) for weight in weights]
        assert packed(weights[4]) is of_each[4]
        assert packed(weights[0]) is not of_each[0]
    with tuning.replaced(cache_entries=3, cache_bytes=9000):
        for weight in weights:
            packed(weight)
    assert 0 < sum(array.nbytes for entry in bounded._entries.values() for array in entry.made) <= 9000


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_parameters_in_another_order_are_read_right(steps: int) -> None:
    """In the order of Fortran, with gaps, from the end: where weights are read as they lie, and where packed."""
    layer = gpulstm.LSTM(8, 9, proj_size=0, seed=0)
    x = np.random.default_rng(0).standard_normal((steps, 1, 8)).astype("f4")

    def outputs() -> list[np.ndarray]:
        (y, state), pullback = layer.vjp(x)
        dx, dstate, grads = pullback(y)
        return [layer(x)[0], y, *state, dx, *dstate, *grads.values()]

    expected = outputs()
    for name, value in layer.params.items():
        wide = np.zeros((*value.shape[:-1], 2 * value.shape[-1]), value.dtype)
        wide[..., ::2] = value
        layer.params[name] = wide[..., ::2] if name.endswith("hh_l0") else np.asfortranarray(value[::-1])[::-1]
    for found, same in zip(outputs(), expected, strict=True):
        np.testing.assert_array_equal(found, same)
    with pytest.raises(ValueError, match=r"layer: expected C-contiguous, aligned parameters, .*: weight_ih_l0"):
        layer.stream()


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru_reset_before", marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", ["in place", "another array"])
def test_a_layer_computes_with_what_its_weights_are_now(change: str, cell: str) -> None:
    layer = gpulstm.nn.Recurrent(cell, 33, 70, bidirectional=True, seed=0)
    x = np.random.default_rng(0).standard_normal((5, 7, 33)).astype("f4")

    def outputs() -> list[Any]:
        (y, state), pullback = layer.vjp(x)
        dx, _, _ = pullback(y)
        return [y, *state, dx]

    first = outputs()
    for name, value in list(layer.params.items()):
        if change == "in place":
            value *= 1.5
        else:
            layer.params[name] = value * np.float32(1.5)
    changed = outputs()
    fresh = gpulstm.nn.Recurrent(cell, 33, 70, bidirectional=True, seed=1)
    fresh.load_state_dict(layer.params)
    layer = fresh
    for found, expected, old in zip(changed, outputs(), first, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(found, old)


# --- what was packed goes with what it was packed from


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> cache._Cache:
    """An empty one in the place of the process's."""
    empty = cache._Cache()
    monkeypatch.setattr(cache, "_cache", empty)
    return empty


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A name for each matrix that is packed."""
    done: list[str] = []
    for name in ("rows", "columns"):
        pack = getattr(layouts, name)
        monkeypatch.setattr(layouts, name, lambda *a, name=name, pack=pack: done.append(name) or pack(*a))
    return done


def trained(layer: Any, x: np.ndarray) -> None:
    (y, _), pullback = layer.vjp(x)
    pullback(y)


@pytest.mark.slow  # for a projection of narrow weights
def test_packed_weights_go_with_their_layer(empty_cache: cache._Cache) -> None:
    x = np.ones((20, 4, 64), np.float32)
    stays = gpulstm.LSTM(64, 300, seed=0)
    trained(stays, x)
    own, used = set(empty_cache._entries), memory._idle.used
    assert own
    for _ in range(3):
        layer = gpulstm.LSTM(64, 300, num_layers=2, bidirectional=True, proj_size=90, seed=0)
        trained(layer, x)
        layer(x)
        quantized = gpulstm.quantize(layer, "int8")
        quantized(x)
        assert len(empty_cache._entries) > len(own)
        del layer, quantized
        assert set(empty_cache._entries) == own
        assert memory._idle.used == used
    gpulstm.release_memory()
    assert memory._idle.idle == 0
    assert set(empty_cache._entries) == own  # of a layer that is there


def test_packed_weights_go_with_a_parameter_that_is_replaced(empty_cache: cache._Cache) -> None:
    layer = gpulstm.LSTM(64, 100, seed=0)
    x = np.ones((20, 4, 64), np.float32)
    for _ in range(3):
        trained(layer, x)
        assert len(empty_cache._entries) == 2
        layer.params["weight_hh_l0"] = layer.params["weight_hh_l0"].copy()
        assert len(empty_cache._entries) == 0


def test_weights_in_another_order_are_copied_for_a_call_and_leave_nothing(empty_cache: cache._Cache) -> None:
    layer = gpulstm.LSTM(64, 100, seed=0)
    layer.params = {name: np.asfortranarray(value) for name, value in layer.params.items()}
    trained(layer, np.ones((20, 4, 64), np.float32))
    assert not empty_cache._entries


def test_weights_of_a_torch_module_are_packed_once_and_go_with_it(empty_cache: cache._Cache, packs: list[str]) -> None:
    """Its tensors are other objects at every call."""
    module, x = gpulstm.torch.LSTM(64, 100), torch.ones(20, 4, 64)
    for _ in range(5):
        module(x)[0].sum().backward()
    assert sorted(packs) == ["columns"] * 2 + ["rows"] * 2
    with torch.no_grad():
        module(x)
    assert len(packs) == 4
    del module
    assert not empty_cache._entries


def test_what_has_no_owner_stays_until_memory_is_released(empty_cache: cache._Cache) -> None:
    weight = np.frombuffer(bytearray(4 * 64 * 64), np.float32).reshape(64, 64)
    before = packed(weight)
    owned = np.ones((64, 64), np.float32)
    packed(owned)
    again = weight[:]
    del weight
    assert packed(again) is before
    gpulstm.release_memory()
    assert len(empty_cache._entries) == 1
    assert packed(again) is not before
    del owned
    assert len(empty_cache._entries) == 1


def test_an_owner_that_goes_while_the_cache_is_in_use(empty_cache: cache._Cache) -> None:
    first, second = (np.full((64, 64), k, np.float32) for k in range(2))
    packed(first)
    packed(second)
    with empty_cache._lock:  # as if the garbage collector came here
        del first
        assert len(empty_cache._entries) == 2
    packed(second)
    assert len(empty_cache._entries) == 1
