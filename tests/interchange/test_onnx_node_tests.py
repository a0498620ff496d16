"""ONNX's own backend tests: every one with a node of ours passes, or is refused by the name of what it wants."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from gpulstm import io

pytestmark = pytest.mark.slow  # to make the cases, which the package makes of every operator at once

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
NAMES = {
    "test_gru_batchwise",
    "test_gru_bidirectional",
    "test_gru_defaults",
    "test_gru_reverse",
    "test_gru_seq_length",
    "test_gru_with_initial_bias",
    "test_lstm_batchwise",
    "test_lstm_bidirectional",
    "test_lstm_defaults",
    "test_lstm_reverse",
    "test_lstm_with_initial_bias",
    "test_lstm_with_peepholes",
    "test_rnn_seq_length",
    "test_simple_rnn_batchwise",
    "test_simple_rnn_bidirectional",
    "test_simple_rnn_defaults",
    "test_simple_rnn_reverse",
    "test_simple_rnn_with_initial_bias",
}
# what is refused, and what the message must say
REFUSED = {"test_lstm_with_peepholes": "peepholes are not supported"}
REFUSED |= {name: "linear_before_reset = 0 is not supported" for name in NAMES if name.startswith("test_gru")}


@functools.cache
def _cases() -> dict[str, Any]:
    """The test cases that the package ships with a node of ours, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the other operators' cases overflows on purpose
        cases = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    return {
        case.name: case
        for case in cases
        if any(node.op_type in ("LSTM", "GRU", "RNN") for node in _model(case).graph.node)
    }


def _model(case: Any) -> Any:
    return onnx.load(os.path.join(case.model_dir, "model.onnx")) if case.model is None else case.model


def test_cases_that_later_versions_add() -> None:
    for name in sorted(_cases().keys() - NAMES):
        test_node(name)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_node(name: str) -> None:
    case = _cases()[name]
    model = _model(case)
    if name in REFUSED:
        with pytest.raises(io.WeightsError, match=REFUSED[name]):
            io.load_onnx(model)
        return
    run = io.load_onnx(model)
    assert case.data_sets
    for inputs, outputs in case.data_sets:
        found = run(**dict(zip(run.inputs, inputs, strict=True)))
        assert list(found) == [entry.name for entry in model.graph.output]
        for value, expected in zip(found.values(), outputs, strict=True):
            assert value.dtype == expected.dtype
            np.testing.assert_allclose(value, expected, rtol=case.rtol, atol=case.atol)
