"""gpulstm.torch's modules against torch.nn's over random configurations: outputs, final states and every gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from tolerances import assert_close
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import gpulstm.torch

torch.set_num_threads(1)  # for problems this small its pool only spins against ours

pytestmark = pytest.mark.filterwarnings(
    # torch says so once a process where a build has no oneDNN path for proj_size; the result is the same
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)

CONFIGURATIONS = 320  # of LSTM and RNN; of the others follow
OF_GRU, OF_RELU = 60, 20
FORMS = ("batched", "batch_first", "unbatched", "packed", "unsorted", "even")
LAYOUTS = ("contiguous", "transposed", "every other", "expanded")
USED = ("all", "output", "state")


class Configuration(NamedTuple):
    """Which module is called how."""

    kind: str
    sizes: tuple[int, int, int, int]  # T, B, I, H
    options: dict[str, Any]
    dtype: torch.dtype
    form: str
    layout: str
    given_state: bool
    used: str
    input_gradient: bool


def configuration(seed: int) -> Configuration:
    """The random configuration number ``seed``."""
    generator = torch.Generator().manual_seed(seed)

    def below(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    def of(choices: tuple[Any, ...]) -> Any:
        return choices[below(len(choices))]

    kind, form = ("LSTM", "RNN")[seed % 2], FORMS[seed // 2 % len(FORMS)]
    if seed >= CONFIGURATIONS:
        kind = "GRU" if seed < CONFIGURATIONS + OF_GRU else "RNN"
    hidden = 2 + below(40)
    options: dict[str, Any] = {
        "num_layers": 1 + below(3),
        "bias": below(4) > 0,
        "bidirectional": bool(below(2)),
        "batch_first": form == "batch_first" or (form != "batched" and bool(below(2))),
    }
    if kind == "LSTM" and below(3) == 0:
        options["proj_size"] = 1 + below(hidden - 1)
    if kind == "RNN" and seed >= CONFIGURATIONS:
        options["nonlinearity"] = "relu"
    return Configuration(
        kind,
        (1 + below(9), 1 + below(7), 1 + below(30), hidden),
        options,
        of((torch.float32, torch.float64)),
        form,
        of(LAYOUTS) if form in ("batched", "batch_first", "unbatched") else "contiguous",
        bool(below(2)),
        of(("all", *USED)),
        below(4) > 0,
    )


def both(kind: str, sizes: tuple[int, int], options: dict[str, Any], dtype: torch.dtype, seed: int) -> list[Any]:
    """torch's module and gpulstm's, with the same parameters since they are drawn alike."""
    modules = []
    for library in (torch.nn, gpulstm.torch):
        torch.manual_seed(seed)
        modules.append(getattr(library, kind)(*sizes, **options, dtype=dtype))
    return modules


def laid_out(value: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return value.mT.contiguous().mT
    if layout == "every other":
        return torch.stack([value, value], dim=-1).flatten(-2)[..., ::2]
    return value[:1].expand(value.shape) if layout == "expanded" else value


def tensors(result: Any) -> list[Tensor]:
    """What a module returned, flat."""
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in tensors(part)]


def gradients(outputs: list[Tensor], leaves: list[Tensor], seed: int) -> list[Tensor | None]:
    """Of a random weighting of ``outputs``; None where a leaf plays no part."""
    torch.manual_seed(seed)
    loss = sum((value * torch.randn_like(value)).sum() for value in outputs)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, leaves, allow_unused=True))


def compare(ours: list[Tensor | None], theirs: list[Tensor | None], dtype: torch.dtype, label: str) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None), label
        if a is not None and b is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype), label
            assert_close(a.detach(), b.detach(), "torch", str(dtype).removeprefix("torch."), label)


def name(seed: int) -> str:
    """Of a random configuration."""
    c = configuration(seed)
    projected = "-projected" * ("proj_size" in c.options)
    return f"{seed}-{c.kind}{projected}-{str(c.dtype).removeprefix('torch.')}"


def marked(seed: int) -> Any:
    """Slow, where kernels of another cell in another type would be compiled."""
    other = configuration(seed).kind == "GRU" and configuration(seed).dtype is torch.float64
    return pytest.param(seed, marks=pytest.mark.slow) if other else seed


@pytest.mark.parametrize("seed", [marked(seed) for seed in range(CONFIGURATIONS + OF_GRU + OF_RELU)], ids=name)
def test_random_configuration(seed: int) -> None:
    c = configuration(seed)
    steps, batch, inputs, hidden = c.sizes
    theirs, ours = both(c.kind, (inputs, hidden), c.options, c.dtype, seed)
    rows = () if c.form == "unbatched" else (batch,)
    order = (*rows, steps) if c.options["batch_first"] and rows else (steps, *rows)
    x = laid_out(torch.randn(*order, inputs, dtype=c.dtype), c.layout).detach().requires_grad_(c.input_gradient)
    count = c.options["num_layers"] * (2 if c.options["bidirectional"] else 1)
    sizes = [c.options.get("proj_size") or hidden, *[hidden] * (c.kind == "LSTM")]
    state = [torch.randn(count, *rows, size, dtype=c.dtype, requires_grad=True) for size in sizes]
    hx = (state[0] if len(state) == 1 else tuple(state)) if c.given_state else None
    lengths = torch.randint(1, steps + 1, (batch,))
    lengths[int(torch.randint(batch, ()))] = steps
    if c.form == "packed":
        lengths = lengths.sort(descending=True).values
    elif c.form == "even":
        lengths[:] = steps

    found = []
    for module in (theirs, ours):
        given: Any = x
        if c.form in ("packed", "unsorted", "even"):
            sorted_ = c.form == "packed"
            given = pack_padded_sequence(x, lengths, batch_first=c.options["batch_first"], enforce_sorted=sorted_)
        result = module(given, hx)
        if isinstance(given, PackedSequence):
            for a, b in zip(result[0][1:], given[1:], strict=True):
                assert a is b or torch.equal(a, b)
        outputs = tensors(result)
        leaves = [*([x] if c.input_gradient else []), *(state if c.given_state else []), *module.parameters()]
        chosen = {"all": outputs, "output": outputs[:1], "state": outputs[1:]}[c.used]
        with torch.no_grad():
            inferred = tensors(module(given, hx))
        found.append((outputs, gradients(chosen, leaves, seed), inferred))
    compare(found[1][0], found[0][0], c.dtype, f"output or state, {c}")
    compare(found[1][1], found[0][1], c.dtype, f"gradient, {c}")
    for trained, inferred in zip(found[1][0], found[1][2], strict=True):
        assert torch.equal(trained, inferred)


def test_configurations_cover_every_feature() -> None:
    all_ = [configuration(seed) for seed in range(CONFIGURATIONS)]
    for kind in ("LSTM", "RNN"):
        own = [c for c in all_ if c.kind == kind]
        assert {c.form for c in own} == set(FORMS)
        assert {c.layout for c in own} == set(LAYOUTS)
        assert {(c.used, c.given_state) for c in own} == {(used, given) for used in USED for given in (True, False)}
        assert {c.input_gradient for c in own} == {True, False}
        assert {(c.form, c.options["bidirectional"]) for c in own} == {(f, b) for f in FORMS for b in (True, False)}
        assert {(c.options["num_layers"], c.options["bias"]) for c in own} == {
            (n, b) for n in (1, 2, 3) for b in (True, False)
        }
        assert 1 in {c.sizes[0] for c in own}
        assert 1 in {c.sizes[1] for c in own}
    assert {c.form for c in all_ if "proj_size" in c.options} == set(FORMS)
    of_gru = [configuration(seed) for seed in range(CONFIGURATIONS, CONFIGURATIONS + OF_GRU)]
    assert {(c.kind, c.form) for c in of_gru} == {("GRU", form) for form in FORMS}
    assert {(c.options["bidirectional"], c.options["bias"], c.dtype) for c in of_gru} == {
        (d, b, dtype) for d in (True, False) for b in (True, False) for dtype in (torch.float32, torch.float64)
    }


CELLS = [
    pytest.param(
        kind,
        seed,
        id=f"{kind}-{seed}{'-float64' * (seed % 2)}",
        marks=[pytest.mark.slow] * (kind == "GRUCell" and seed % 2 == 1),
    )
    for kind in ("LSTMCell", "GRUCell", "RNNCell")
    for seed in range(20)
]


@pytest.mark.parametrize(("kind", "seed"), CELLS)
def test_random_cell(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    inputs, hidden, rows = 1 + seed % 7, 1 + seed % 23, () if seed % 5 == 0 else (1 + seed % 4,)
    dtype = (torch.float32, torch.float64)[seed % 2]
    options: dict[str, Any] = {"bias": seed % 3 > 0}
    if kind == "RNNCell":
        options["nonlinearity"] = ("relu", "tanh")[seed % 2]
    theirs, ours = both(kind, (inputs, hidden), options, dtype, seed)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    x = torch.randn(4, *rows, inputs, dtype=dtype, requires_grad=True)
    state = [torch.randn(*rows, hidden, dtype=dtype, requires_grad=True) for _ in range(2)]
    found = []
    for module in (theirs, ours):
        hx: Any = (tuple(state) if kind == "LSTMCell" else state[0]) if seed % 2 else None
        outputs = []
        for step in x:
            hx = module(step, hx)
            outputs += hx if isinstance(hx, tuple) else [hx]
        given = state if kind == "LSTMCell" else state[:1]
        leaves = [x, *(given if seed % 2 else []), *module.parameters()]
        found.append((outputs, gradients(outputs, leaves, seed)))
    compare(found[1][0], found[0][0], dtype, "state")
    compare(found[1][1], found[0][1], dtype, "gradient")


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True, "batch_first": True}, {"proj_size": 3}],
    ids=["", "both", "projected-float64"],
)
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_draws_the_masks_that_torch_draws(options: dict[str, Any], p: float) -> None:
    theirs, ours = both("LSTM", (4, 6), {"num_layers": 3, "dropout": p, **options}, torch.float64, 0)
    x = torch.randn(5, 7, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        outputs = tensors(module(x))
        found.append((outputs, gradients(outputs, [x, *module.parameters()], 1)))
    compare(found[1][0], found[0][0], torch.float64, "output")
    compare(found[1][1], found[0][1], torch.float64, "gradient")
    assert not torch.equal(tensors(ours(x))[0], found[1][0][0]) or p == 1  # other masks
    ours.eval(), theirs.eval()
    compare(tensors(ours(x)), tensors(theirs(x)), torch.float64, "without dropout")


def test_dropout_on_packed_sequences() -> None:
    """torch draws the masks of packed rows in another order; so here: reproducible, and none past a length."""
    _, ours = both("LSTM", (4, 64), {"num_layers": 2, "dropout": 0.5}, torch.float64, 0)
    packed = pack_padded_sequence(torch.randn(9, 3, 4, dtype=torch.float64), torch.tensor([9, 5, 1]))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(tensors(ours(packed)))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
    ours.eval()
    first_layer = slice(0, 1)
    assert torch.equal(ours(packed)[1][0][first_layer], results[0][1][first_layer])
