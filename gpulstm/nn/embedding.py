"""A row of features for every id of a vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arrays, checks
from .model import Layer, Params


class Embedding(Layer):
    """``y = weight[ids]``: integer ids (...) of any integer dtype give y (..., features).

    ``weight`` (vocabulary, features) starts as N(0, 1), as torch's. The pullback's dx is None: ids have no
    gradient.

    Raises:
        ValueError: a size below 1; ids that are empty or outside the vocabulary; dy of another shape than y.
        TypeError: ids that are no integers; dy of another dtype than the layer.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: Any = "float32", seed: Any = None) -> None:
        self.num_embeddings = checks.integer(num_embeddings, "num_embeddings")
        self.embedding_dim = checks.integer(embedding_dim, "embedding_dim")
        shape = (self.num_embeddings, self.embedding_dim)
        weight = arrays.generator(seed, "seed").standard_normal(shape).astype(checks.dtype(dtype))
        self.params = {"weight": weight}

    def __call__(self, ids: Any) -> np.ndarray:
        return self.params["weight"].take(self._ids(ids), axis=0)

    def vjp(self, ids: Any, *, rng: Any = None) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[None, Params]]]:
        ids = self._ids(ids)
        weight = self.params["weight"]
        y = weight.take(ids, axis=0)

        def pullback(dy: Any) -> tuple[None, Params]:
            dy = checks.array(dy, "dy", weight.dtype, y.shape)
            dweight = np.zeros(weight.shape, weight.dtype)
            # One scatter over flat elements: add.at is fast in one dimension only. It adds in the order of
            # ids, so the sum is the same on every run.
            elements = ids.reshape(-1, 1) * self.embedding_dim + np.arange(self.embedding_dim)
            np.add.at(dweight.reshape(-1), elements.reshape(-1), dy.reshape(-1))
            return None, {"weight": dweight}

        return y, pullback

    def _ids(self, ids: Any) -> np.ndarray:
        return checks.indices(ids, "ids", self.num_embeddings, "the vocabulary's size")
