"""Recurrent layers: :class:`LSTM`, :class:`GRU`, :class:`RNN`, and :class:`Recurrent` for any registered cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import arrays, cells, checks, dispatch, explanation, ops, watching
from .. import noise as noises
from ..config import Config
from .model import Params, Pullback, on_device, unwrap_single
from .stream import Streamed

INITS = ("uniform", "recommended")


class Recurrent(Streamed):
    """A stack of recurrent layers of one cell, with the arguments, parameters and names of ``torch.nn.LSTM``.

    Args:
        cell: a cell or the name of a registered one (:mod:`gpulstm.cells`).
        input_size: features I of the input; None where x holds pre-activations (T, B, D·G·H), which something else
            has computed: what products with ``weight_ih_l0`` would give, in the order of its rows, of each direction
            one after another. Then there is one layer, without ``weight_ih_l0``.
        hidden_size: units H of each layer and direction.
        num_layers: layers L.
        bias: whether the gates have ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are (B, T, ·) rather than (T, B, ·); states are not.
        dropout: probability with which a value between two layers is dropped in :meth:`vjp`.
        bidirectional: a second set of layers runs from the end; outputs are joined, D = 2.
        proj_size: if above 0, h is projected to P = ``proj_size`` features by ``weight_hr``.
        heads: N blocks of units that see each other's h alone: ``weight_hh_l0`` is (N, G·H/N, H/N), the rows of a head
            by gate.
        weight_dropout: probability with which a recurrent weight is dropped in :meth:`vjp`, for the whole call, the
            others divided by 1 - p (DropConnect: Wan et al. 2013; of ``weight_hh`` alone: Merity et al. 2018).
        noise: probabilities of those of the cell's inputs that are drawn, such as ``{"mask": 0.25}`` for
            ``recurrent_dropout``: in :meth:`vjp` at each step or once a sequence, as the cell declares or as
            ``{"mask": (0.25, "sequence")}`` says; in inference they have their expectation.
        dtype: ``"float32"`` or ``"float64"``; on ``"cuda"`` also ``"float16"`` or ``"bfloat16"``, with sums and
            carried states in float32.
        device: None or ``"cpu"``; ``"cuda"`` where a CUDA backend runs.
        seed: seed or ``numpy.random.Generator`` for the initial parameters.
        init: ``"uniform"``: ±1/√H, as torch; ``"recommended"``: orthogonal recurrent weights for each gate (Saxe et
            al. 2014), Glorot-uniform input weights, and a bias of 1 on a gate called f, so that memory lasts from
            the start (Jozefowicz et al. 2015).

    Attributes:
        params: dict of arrays under torch's names, ``weight_ih_l0`` (G·H, I), ``weight_hh_l0`` (G·H, P), ...; G
            gates in the order of the cell, i, f, g, o for the LSTM, and after them those of the input or of h alone
            (``weight_hh`` is not there for a cell without gates of h). The cell's own parameters are (H,) each, as
            ``p_i_l0``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, or sizes that no memory here holds.
        BackendUnavailable: ``device`` has no backend here.
    """

    def __init__(
        self,
        cell: str | cells.Cell,
        input_size: int | None,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        heads: int = 1,
        weight_dropout: float = 0.0,
        noise: Mapping[str, Any] | None = None,
        dtype: Any = "float32",
        device: str | None = None,
        seed: Any = None,
        init: str = "uniform",
    ) -> None:
        cell = cells.get(cell)
        self.config = Config(
            cell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            heads,
            weight_dropout,
            noises.settings(cell, noise),
        )
        device = dispatch.check_device(device)
        checks.choice(init, "init", INITS)
        draw = _uniform if init == "uniform" else _recommended
        own = checks.dtype(dtype, device)
        self.config.check_memory(own.itemsize)
        params = draw(self.config, arrays.generator(seed, "seed"), own)
        _begin(self.config, params)
        self.params = on_device(params, device)

    def __call__(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        resets: Any = None,
        *,
        inputs: Any = None,
        backend: str | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Inference: ``y, state``; arguments, shapes, and what is raised, as :func:`gpulstm.ops.rnn_forward` says.

        The state is ``h`` for a cell that carries no other, else ``(h, c)``.
        """
        y, final, _ = ops.rnn_forward(
            self.config, self.params, x, state, lengths, resets, inputs=inputs, backend=backend
        )
        return y, unwrap_single(final)

    forward = __call__

    def vjp(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        resets: Any = None,
        *,
        inputs: Any = None,
        rng: Any = None,
        backend: str | None = None,
    ) -> tuple[tuple[np.ndarray, Any], Pullback]:
        """``(y, state), pullback``: the output as in training, and its vector-Jacobian product.

        ``pullback(dy=None, dstate=None)`` gives ``dx, dstate0, grads``, ``grads`` with the keys of ``params``, and
        ``inputs.<name>`` for each differentiable input of the cell; None means zero. It may be called more than once,
        before an argument or the parameters change. ``rng`` is the generator or seed of dropout's masks and of noise.
        """
        p, library, params = self.config.weight_dropout, arrays.library(self.device), self.params
        masks: Params = {}
        if p:
            rng = library.generator(rng)
            masks = {n: library.dropout_mask(rng, w.shape, p) for n, w in params.items() if n.startswith("weight_hh")}
            params = params | {name: library.drop(params[name], mask, p) for name, mask in masks.items()}
        y, final, tape = ops.rnn_forward(
            self.config, params, x, state, lengths, resets, inputs=inputs, training=True, rng=rng, backend=backend
        )
        assert tape is not None

        def pullback(dy: Any = None, dstate: Any = None) -> tuple[np.ndarray, Any, Params]:
            dx, initial, grads = ops.rnn_backward(tape, dy, dstate)
            for name, mask in masks.items():
                grads[name] = library.drop(grads[name], mask, p)
            return dx, unwrap_single(initial), grads

        return (y, unwrap_single(final)), pullback

    def watch(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        resets: Any = None,
        *,
        inputs: Any = None,
        backend: str | None = None,
    ) -> watching.Watched:
        """The call as in inference, and what happened inside; see :func:`gpulstm.watch`."""
        found = watching.watch(self.config, self.params, x, state, lengths, resets, inputs=inputs, backend=backend)
        return watching.Watched(found.y, unwrap_single(found.state), dict(found))

    def explain(self, x: Any, *, backend: str | None = None) -> str:
        """See :func:`gpulstm.explain`."""
        return explanation.explain(self.config, self.params, x, backend)

    def __repr__(self) -> str:
        c = self.config
        own = type(self) is Recurrent
        shown = [*[repr(c.cell.name)] * own, str(c.input_size), str(c.hidden_size)]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        defaults |= {"bidirectional": False, "proj_size": 0, "heads": 1, "weight_dropout": 0.0}
        shown += [f"{k}={getattr(c, k)}" for k, v in defaults.items() if getattr(c, k) != v]
        shown += [f"noise={noises.argument(c.cell, c.noise)}"] * bool(c.noise)
        return f"{type(self).__name__}({', '.join(shown)})"


def _uniform(config: Config, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
    bound = 1 / np.sqrt(config.hidden_size)
    return {name: rng.uniform(-bound, bound, shape).astype(dtype) for name, shape in config.shapes().items()}


def _recommended(config: Config, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
    gates, hidden = (*config.cell.gates, *config.cell.x_gates), config.hidden_size
    params = {}
    for name, shape in config.shapes().items():
        if len(shape) == 1:  # biases, and the cell's own parameters
            value = np.zeros((shape[0] // hidden, hidden))
            if name.startswith("bias_ih") and "f" in gates:
                value[gates.index("f")] = 1
        elif name.startswith("weight_hh"):
            blocks = config.heads * len(config.cell.gates_of_h)
            value = np.stack([_orthogonal(rng, hidden // config.heads, shape[-1]) for _ in range(blocks)])
        else:
            rows = hidden if name.startswith("weight_ih") else shape[0]
            bound = np.sqrt(6 / (rows + shape[1]))
            value = rng.uniform(-bound, bound, shape)
        params[name] = np.ascontiguousarray(value.reshape(shape), dtype)
    return params


def _begin(config: Config, params: dict[str, np.ndarray]) -> None:
    """Give those of the cell's parameters their initial value that have one."""
    for name, value in zip(config.cell.params, config.cell.initial, strict=False):
        if value is not None:
            for ends in config.suffixes():
                for end in ends:
                    params[name + end][:] = value


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A random matrix with orthonormal columns (or rows, if there are fewer), evenly distributed (Mezzadri 2007)."""
    tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T


class LSTM(Recurrent):
    """Long short-term memory; a drop-in for ``torch.nn.LSTM`` on arrays. See :class:`Recurrent` for the arguments.

    ``y, (h, c) = lstm(x, state=None, lengths=None)``;
    ``(y, (h, c)), vjp = lstm.vjp(x)``; ``dx, (dh0, dc0), grads = vjp(dy, (dh, dc))``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            "lstm",
            checks.integer(input_size, "input_size"),
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            **options,
        )


class GRU(Recurrent):
    """The gated recurrent unit; a drop-in for ``torch.nn.GRU`` on arrays. See :class:`Recurrent` for the arguments.

    ``y, h = gru(x, state=None, lengths=None)``; ``(y, h), vjp = gru.vjp(x)``; ``dx, dh0, grads = vjp(dy, dh)``. Gates
    lie in torch's order, r, z, n, in ``weight_ih_l0`` (3·H, I) and ``weight_hh_l0`` (3·H, H); the reset gate scales the
    product of h, as cuDNN has it: ``n = tanh(W_in·x + b_in + r (W_hn·h + b_hn))``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        **options: Any,
    ) -> None:
        checks.integer(input_size, "input_size")
        super().__init__(
            "gru", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options
        )


class RNN(Recurrent):
    """The vanilla recurrent network, ``h' = tanh(W_ih·x + W_hh·h + b)``. See :class:`Recurrent` for the arguments.

    ``y, h = rnn(x, state=None, lengths=None)``; ``(y, h), vjp = rnn.vjp(x)``; ``dx, dh0, grads = vjp(dy, dh)``. By
    keyword it takes ``nonlinearity``, ``"relu"`` in the place of ``"tanh"``, and ``proj_size``, which torch's RNN does
    not.
    """

    CELLS: ClassVar = {"tanh": "rnn", "relu": "rnn_relu"}
    """The name of the cell for each ``nonlinearity``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        nonlinearity: str = "tanh",
        **options: Any,
    ) -> None:
        checks.integer(input_size, "input_size")
        cell = self.CELLS[checks.choice(nonlinearity, "nonlinearity", tuple(self.CELLS))]
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options
        )

    @property
    def nonlinearity(self) -> str:
        """``"tanh"`` or ``"relu"``."""
        return next(name for name, cell in self.CELLS.items() if cell == self.config.cell.name)

    def __repr__(self) -> str:
        shown = super().__repr__()
        return shown if self.nonlinearity == "tanh" else f"{shown[:-1]}, nonlinearity={self.nonlinearity!r})"
