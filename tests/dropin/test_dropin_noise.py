"""Noise that gpulstm.torch.Recurrent draws: by torch's seed, the bits of gpulstm.nn, in training alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cell_problems import DOUBLE, close
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gpulstm
from gpulstm import nn
from gpulstm.arrays import random
from gpulstm.torch import Recurrent

NOISE: dict[str, Any] = {"keep_c": 0.5, "keep_h": (0.2, "sequence")}
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def in_numpy() -> Iterator[None]:
    with gpulstm.use_backend("reference"):
        yield


def module(cell: str = "zoneout", noise: Any = None, **options: Any) -> Recurrent:
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": True, "dtype": DOUBLE} | options
    return Recurrent(cell, 3, 4, noise=noise or NOISE, **options)


def call(layer: Any, x: Tensor, seed: int = 1, **options: Any) -> Tensor:
    torch.manual_seed(seed)
    return layer(x, **options)[0]


X = torch.randn(5, 2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def test_the_masks_are_those_of_the_counter() -> None:
    layer = module("recurrent_dropout", {"mask": 0.3}, num_layers=1, bidirectional=False)
    torch.manual_seed(5)
    words = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32).numpy().view(np.uint32)
    mask = np.empty((5, 2, 4))
    random.noise(mask, words, 0, round(0.3 * random.PARTS), 0.0, float(np.float32(1 / 0.7)))
    assert 0 < (mask == 0).mean() < 1
    expected, _ = layer(X, inputs={"mask": torch.from_numpy(mask)})
    assert torch.equal(call(layer, X, 5), expected)


def test_training_and_evaluation() -> None:
    layer = module()
    one, same, other = call(layer, X), call(layer, X), call(layer, X, 2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(call(layer, X), one)
    layer.eval()
    numpy = nn.Recurrent("zoneout", 3, 4, 2, bidirectional=True, noise=NOISE, dtype="float64")
    numpy.load_state_dict({name: value.detach().numpy() for name, value in layer.named_parameters()})
    close([layer(X)[0]], [torch.from_numpy(numpy(X.numpy())[0])])


def test_gradients_with_the_seed_held() -> None:
    layer = module("variational_dropout", {"mask": 0.4}, num_layers=1)
    x = X[:2, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: call(layer, x), x)
    assert torch.autograd.gradgradcheck(lambda x: call(layer, x), x)


def test_a_longer_and_wider_batch_begins_with_the_same() -> None:
    layer = module(bidirectional=False)
    close([call(layer, X[:3, :1])], [call(layer, X)[:3, :1]])


def test_packed_and_batch_first() -> None:
    layer = module()
    lengths = torch.tensor([5, 3])
    y = call(layer, pack_padded_sequence(X, lengths))
    close([pad_packed_sequence(y)[0]], [call(layer, X, lengths=lengths)])
    first = module(batch_first=True)
    close([call(first, X.transpose(0, 1)).transpose(0, 1)], [call(layer, X)])
    close([call(layer, X[:, 0])], [call(layer, X[:, :1])[:, 0]])


def test_inputs_that_are_given_are_taken() -> None:
    layer, keep = module(noise={"keep_c": 0.5}), torch.full((5, 2), 0.25, dtype=DOUBLE)
    given = {"keep_h": keep, "keep_c": keep[:, :, None].expand(5, 2, 4)}
    assert torch.equal(call(layer, X, 1, inputs=given), call(layer, X, 2, inputs=given))
    given.pop("keep_c")
    assert not torch.equal(call(layer, X, 1, inputs=given), call(layer, X, 2, inputs=given))
    with pytest.raises(ValueError, match=r"inputs: expected a dict with keep_c, keep_h.* got none"):
        layer(X)


def test_transforms() -> None:
    layer = module()
    parameters = dict(layer.named_parameters())

    def loss(own: Any, x: Tensor) -> Tensor:
        return functional_call(layer, own, (x,))[0].square().sum()

    torch.manual_seed(1)
    found = grad(loss)(parameters, X)
    call(layer, X).square().sum().backward()
    close([found["weight_hh_l0"]], [layer.weight_hh_l0.grad])
    twice = X.expand(3, *X.shape)
    for randomness, same in (("same", True), ("different", False)):
        y = vmap(lambda x: layer(x)[0], randomness=randomness)(twice)
        assert torch.equal(y[0], y[1]) == same
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: layer(x)[0])(twice)


@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"  # torch.compile itself
)
def test_compiled() -> None:
    layer = module()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(call(compiled, X), call(layer, X))
    assert not torch.equal(call(compiled, X, 2), call(layer, X))


def test_the_operator() -> None:
    seed = torch.tensor([1, -2], dtype=torch.int32)
    arguments = (seed, 3, 1 << 22, 0.0, 1.25, True, 2, 3, 5, torch.float32)
    torch.library.opcheck(torch.ops.gpulstm.noise.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_on_a_cpu_are_computed_in_float32(dtype: torch.dtype) -> None:
    layer = module("recurrent_dropout", {"mask": 0.3}, dtype=dtype)
    wide = copy.deepcopy(layer).float()
    found, expected = call(layer, X.to(dtype)), call(wide, X.to(dtype).float())
    assert found.dtype is dtype
    assert (found.float() - expected).abs().max() < 0.02


def test_copies_and_words() -> None:
    layer = module()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(call(other, X), call(layer, X))
    assert "noise={'keep_c': 0.5, 'keep_h': (0.2, 'sequence')}" in repr(layer)
    assert "noise" not in repr(Recurrent("zoneout", 3, 4))
    with pytest.raises(ValueError, match="noise: expected None, since cell 'lstm' declares no noise, got 'mask'"):
        Recurrent("lstm", 3, 4, noise={"mask": 0.5})
