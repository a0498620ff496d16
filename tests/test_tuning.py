"""The thresholds of the CPU backend can be replaced, but for those that kernels were compiled with."""

from __future__ import annotations

import ast
import inspect
import itertools
from dataclasses import fields

import pytest

from gpulstm_kernels.cpu import tuning


def test_values_are_replaced_and_come_back() -> None:
    before = tuning.current
    with tuning.replaced(split_from=1) as outer:
        with tuning.replaced(packs_from=2):
            assert (tuning.current.split_from, tuning.current.packs_from) == (1, 2)
        with pytest.raises(ZeroDivisionError), tuning.replaced(packs_from=2):
            raise ZeroDivisionError
        assert tuning.current is outer
    assert tuning.current is before


def test_what_is_compiled_into_kernels_is_not_replaced() -> None:
    with pytest.raises(ValueError, match="tuning: depth is compiled into kernels and cannot be replaced"):
        tuning.replaced(depth=8).__enter__()
    with pytest.raises(TypeError, match="no_such_threshold"):
        tuning.replaced(no_such_threshold=8).__enter__()


def test_every_threshold_says_what_it_is() -> None:
    body = ast.parse(inspect.getsource(tuning.Tuning)).body[0].body  # type: ignore[attr-defined]
    documented = [
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(node.target, ast.Name)
    ]
    assert documented == [part.name for part in fields(tuning.Tuning)]
