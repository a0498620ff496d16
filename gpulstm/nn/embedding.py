"""A row of features for every id of a vocabulary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import arrays, checks, dispatch
from .model import Layer, Params, Pullback, on_device


class Embedding(Layer):
    """``y = weight[ids]``: integer ids (...) of any integer dtype give y (..., features).

    ``weight`` (vocabulary, features) starts as N(0, 1), as torch's. The pullback's dx is None: ids have no
    gradient. On a GPU ids may be int32 there: they are not looked at, and one outside the vocabulary gives NaN.

    Raises:
        ValueError: a size below 1, sizes beyond memory; ids that are empty or outside the vocabulary; dy of another
            shape than y.
        TypeError: ids that are no integers; dy of another dtype than the layer.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: Any = "float32",
        device: str | None = None,
        seed: Any = None,
    ) -> None:
        device = dispatch.check_device(device)
        self.num_embeddings = checks.integer(num_embeddings, "num_embeddings")
        self.embedding_dim = checks.integer(embedding_dim, "embedding_dim")
        shape, own = (self.num_embeddings, self.embedding_dim), checks.dtype(dtype, device)
        checks.fits(math.prod(shape) * own.itemsize, "num_embeddings, embedding_dim", shape)
        weight = arrays.generator(seed, "seed").standard_normal(shape).astype(own)
        self.params = on_device({"weight": weight}, device)

    def __call__(self, ids: Any) -> np.ndarray:
        return self.forward(ids)[0]

    def forward(self, ids: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, tuple[()]]:
        self.check_unused(state, lengths)
        return arrays.library(self.device).take(self.params["weight"], self._ids(ids)), ()

    def vjp(
        self, ids: Any, state: Any = None, lengths: Any = None, *, rng: Any = None
    ) -> tuple[tuple[np.ndarray, tuple[()]], Pullback]:
        self.check_unused(state, lengths)
        device, library = self.device, arrays.library(self.device)
        library.check_rng(rng)
        ids = self._ids(ids)
        weight = self.params["weight"]
        y = library.take(weight, ids)

        def pullback(dy: Any, dstate: Any = None) -> tuple[None, tuple[()], Params]:
            self.check_unused(dstate, name="dstate")
            dy = library.contiguous(checks.array(dy, "dy", weight.dtype, y.shape, device=device))
            rows = dy.reshape(-1, self.embedding_dim)
            return None, (), {"weight": library.sum_by_id(rows, ids.reshape(-1), self.num_embeddings)}

        return (y, ()), pullback

    def _ids(self, ids: Any) -> np.ndarray:
        return checks.indices(ids, "ids", self.num_embeddings, "the vocabulary's size", self.device)
