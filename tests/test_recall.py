"""Associative recall: what is drawn, what attention computes, and the command from training to an answer."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import error, invoke, last_json

from gpulstm.data.recall import EPOCH, KEYS, TOKENS, VALUES, Drawn, drawn, held_out, parsed
from gpulstm.tasks.recall import RecallTask, Settings, shapes
from gpulstm.tasks.recall_model import Memory, build
from gpulstm.train import checkpoint

SMALL = ["--pairs=3", "--embed=4", "--hidden=6", "--batch=5", "--validate-every=2", "--save-every=1"]


def train(*arguments: Any) -> Any:
    return invoke("train", "recall", *arguments)


def columns(tokens: np.ndarray) -> set[bytes]:
    return {column.tobytes() for column in np.ascontiguousarray(tokens.T)}


# --- data


@pytest.mark.parametrize("pairs", [1, 16, len(KEYS)])
def test_the_answer_is_the_value_of_the_key(pairs: int) -> None:
    found = drawn(3, "training", 7, 50, pairs)
    assert found.tokens.shape == (2 * pairs + 1, 50)
    for number in range(50):
        *told, query = found.text(number).split()
        memory = dict(pair.split("=") for pair in told)
        assert len(memory) == len(told) == pairs
        assert memory.keys() <= set(KEYS)
        assert memory[query[0]] == VALUES[found.answers[number]]
        assert told[found.asked[number]][0] == query[0]
        np.testing.assert_array_equal(parsed(found.text(number))[:, 0], found.tokens[:, number])


def test_keys_values_and_queries_are_drawn_evenly() -> None:
    found = drawn(0, "test", 0, 4096, 16)
    for values, size in ((found.tokens[0], len(KEYS)), (found.answers, len(VALUES)), (found.asked, 16)):
        counts = np.bincount(values, minlength=size)
        expected = 4096 / size
        assert np.abs(counts - expected).max() < 5 * expected**0.5  # of a Poisson distribution nearly


def test_nothing_leaks() -> None:
    """Four pairs have 10¹¹ sequences: two streams that are independent have none in common."""
    data, batches = held_out(0, 4), Drawn(0, 64, 4)
    validation, test = columns(data.validation.tokens), columns(data.test.tokens)
    training = set().union(*(columns(batches.next()["inputs"]) for _ in range(200)))
    assert (len(validation), len(test), len(training)) == (1024, 4096, 200 * 64)
    assert all(not a & b for a, b in itertools.combinations((validation, test, training), 2))
    assert held_out(1, 4).digest != data.digest == held_out(0, 4).digest != held_out(0, 5).digest
    assert "synthetic" in data.describe()


def test_batches_go_on_where_they_stopped() -> None:
    one = Drawn(5, 3, 2)
    for _ in range(EPOCH + 1):
        one.next()
    assert one.epoch == 1
    other = Drawn(5, 3, 2)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.epoch == 1
    for _ in range(3):
        a, b = one.next(), other.next()
        np.testing.assert_array_equal(a["inputs"], b["inputs"])
        np.testing.assert_array_equal(a["targets"], b["targets"])
        assert a.tokens == 15
    with pytest.raises(ValueError, match="data position: made for pairs 2, expected 3"):
        Drawn(5, 3, 3).load_state_dict(one.state_dict())
    with pytest.raises(TypeError, match=r"state.number: expected an integer >= 0, got 'x'"):
        one.load_state_dict(one.state_dict() | {"number": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: expected pairs, then a query for one of their keys, .*, got ''"),
        ("a=3 b=5", "then a query for one of their keys, .*, got 'b=5'"),
        ("a=3 b?", r"then a query for one of their keys, .*, got 'b\?'"),
        ("a=3 ab?", r"then a query .*, got 'ab\?'"),
        ("a=8 a?", "text: expected a pair such as 'a=3', .* a value of 0 to 7, got 'a=8'"),
        ("a3 a?", "text: expected a pair such as 'a=3', .*, got 'a3'"),
        ("é=3 é?", "text: expected a pair such as 'a=3', .*, got 'é=3'"),
        ("a=3 a=4 a?", "text: expected every key once, got 'a' twice"),
    ],
)
def test_a_text_that_asks_nothing(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


# --- model


@pytest.mark.usefixtures("in_numpy")
def test_attention_is_its_equation() -> None:
    torch.manual_seed(0)
    memory = Memory(4, 6, attends=True).double()
    tokens = torch.from_numpy(drawn(0, "test", 0, 5, 3).tokens)
    logits, weights = memory.look(tokens)
    h = memory.lstm(memory.embedding(tokens))[0].detach().numpy()
    assert memory.match is not None
    matched = h @ memory.match.weight.detach().numpy().T
    for row in range(5):
        powers = np.exp([matched[t, row] @ matched[-1, row] / 6**0.5 for t in range(6)])
        read = sum(share * h[t + 1, row] for t, share in enumerate(powers / powers.sum()))
        expected = memory.head.weight.detach().numpy() @ np.concatenate([h[-1, row], read]) + memory.head.bias.tolist()
        assert weights is not None
        np.testing.assert_allclose(weights[:, row].tolist(), powers / powers.sum(), rtol=1e-12)
        np.testing.assert_allclose(logits[row].tolist(), expected, rtol=1e-12)


def test_shapes_are_those_of_the_model() -> None:
    config = {"embed": 5, "hidden": 7, "seed": 0}
    model = build(config)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes(config)
    same, other = build(config), build(config | {"seed": 1})
    for name, value in model.params.items():
        np.testing.assert_array_equal(same.params[name], value)
        assert not np.array_equal(other.params[name], value)
    assert len(TOKENS) == len(set(TOKENS)) == 72


@pytest.mark.usefixtures("in_numpy")
def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model that knows the answers to three queries of four, and one that always says 2."""
    settings = Settings(pairs=4, embed=2, hidden=2)
    data = RecallTask.read(settings)
    task = RecallTask(settings, data)
    known = np.arange(4096) % 4 > 0
    answers = {data.test.tokens[:, i].tobytes(): data.test.answers[i] for i in np.flatnonzero(known)}

    def model(tokens: np.ndarray) -> Any:
        said = [answers.get(column.tobytes(), -1) for column in np.ascontiguousarray(tokens.T)]
        logits = np.log(np.where(np.arange(8) == np.array(said)[:, None], 0.3, 0.1)).astype(np.float32)
        return logits, np.tile(np.eye(8, dtype=np.float32)[2], (tokens.shape[1], 1))

    assert len(answers) == np.count_nonzero(known)  # no sequence twice
    monkeypatch.setattr(task, "model", model)
    seen: list[Any] = []
    found = task.evaluate(lambda done, total: seen.append((done, total)))
    silent = data.test.answers[~known] == 0  # where all logits are the same the first is taken
    assert found["accuracy"] == (np.count_nonzero(known) + np.count_nonzero(silent)) / 4096
    assert found["accuracy_plain"] == np.count_nonzero(data.test.answers == 2) / 4096
    assert found["loss"] == pytest.approx(0.75 * -np.log(0.3) + 0.25 * np.log(8), rel=1e-6)
    assert seen[-1] == (4096, 4096)
    assert "the plain one is no worse" not in task.summary(found)
    assert "the plain one is no worse" in task.summary({"accuracy": 0.5, "accuracy_plain": 0.5})


# --- command


@pytest.mark.slow
@pytest.mark.usefixtures("in_numpy")
def test_the_command(tmp_path: Path) -> None:
    options = [*SMALL, "--schedule", "constant", "--json"]
    whole = train("--out", tmp_path / "whole", "--steps", 5, *options)
    assert whole.exit_code == 0, whole.output
    for part in ("3 pairs of 64 keys and 8 values", "synthetic", "by the plain LSTM (chance 12.5%", "? "):
        assert part in whole.output
    train("--out", tmp_path / "half", "--steps", 2, *options)
    resumed = train("--out", tmp_path / "half", "--resume", "--steps", 5, "--json")
    assert list(last_json(resumed.output))[:4] == ["steps", "epochs", "accuracy", "accuracy_plain"]
    assert last_json(resumed.output)["accuracy"] == last_json(whole.output)["accuracy"]
    first, second = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "half")
    for name, value in first.model.items():
        np.testing.assert_array_equal(second.model[name], value)

    asked = invoke("recall", "--checkpoint", tmp_path / "half", "--text", "a=3 b=5 Z=0 σ=1 b?")
    assert asked.exit_code == 0, asked.output
    assert asked.output.startswith("a=3 b=5 Z=0 σ=1 b? ")
    assert "(right: 5, the plain LSTM: " in asked.output
    assert "looked at " in asked.output
    assert "got 'q?'" in error(invoke("recall", "--checkpoint", tmp_path / "half", "--text", "a=3 q?"))
    message = error(train("--out", tmp_path / "half", "--resume", "--pairs", 4))
    assert "pairs: 4 contradicts 3 of " in message
    saved = checkpoint.load(tmp_path / "half")
    record = saved.record | {"config": saved.record["config"] | {"hidden": 7}}
    wrong = checkpoint.save(tmp_path / "wrong", 5, saved.model, saved.training, record)
    refused = error(invoke("recall", "--checkpoint", wrong))
    assert "model.safetensors: attentive.head.weight: expected (8, 14), got (8, 12)" in refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pairs 65", "pairs: expected at most 64, as there are keys, got 65"),
        ("--pairs 0", "pairs: expected an integer >= 1, got 0"),
        (
            "--hidden 10000000000",
            "embed and hidden: expected sizes whose arrays fit into memory, got (64, 1000",
        ),
        ("--steps 3 --minutes 1", "limit: expected one of steps, epochs and minutes"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: str, message: str) -> None:
    assert message in error(train("--out", tmp_path / "out", *arguments.split()))
    assert not (tmp_path / "out").exists()


def test_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device: expected 'cpu' for recall, .*, got 'cuda'"):
        Settings(device="cuda")


def test_the_limit() -> None:
    assert Settings().limits() == {"steps": 400}
    assert Settings(minutes=2.0).limits() == {"minutes": 2.0}
    assert Settings(epochs=2).changed(steps=3).limits() == {"steps": 3}


def test_help_needs_no_torch() -> None:
    code = "import sys; from gpulstm_command import main; sys.modules['torch'] = None; sys.argv[1:] = "
    told = subprocess.run(
        [sys.executable, "-c", f"{code}['train', 'recall', '--help']; main()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "--pairs" in told.stdout, told.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(ImportError, match=r"torch is needed here .*: python -m pip install 'gpulstm\[torch\]'"):
            RecallTask.build({"embed": 2, "hidden": 2}, "cpu")


@pytest.mark.usefixtures("in_numpy")
def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    settings = Settings(pairs=2, embed=2, hidden=2)
    RecallTask(settings, RecallTask.read(settings)).picture(tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    code = "from gpulstm_command import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code, "train", "recall", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            env=environment,
        )

    options = [*SMALL, "--steps=60", "--keep=2"]
    assert start("--out", tmp_path / "whole", *options).wait(120) == 0
    out = tmp_path / "half"
    process = start("--out", out, *options)
    deadline = time.monotonic() + 120
    while (checkpoint.latest(out) or out) < checkpoint.path_of(out, 7):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(120) == -signal.SIGKILL
    assert start("--out", out, "--resume").wait(120) == 0
    first, second = checkpoint.load(tmp_path / "whole"), checkpoint.load(out)
    for a, b in ((first.model, second.model), (first.training, second.training)):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert value.tobytes() == b[name].tobytes(), name
    for part in ("rng", "data", "loss", "validation"):
        assert first.record[part] == second.record[part]


@pytest.mark.slow
def test_attention_remembers_what_a_plain_lstm_does_not(tmp_path: Path) -> None:
    result = train("--out", tmp_path / "out", "--json")
    found = last_json(result.output)
    assert found["accuracy"] >= 0.99
    assert 0.125 < found["accuracy_plain"] < 0.6
    asked = invoke("recall", "--checkpoint", tmp_path / "out", "--text", "a=3 b=5 c=7 d=0 e=1 f=2 g=4 h=6 c?")
    assert asked.output.startswith("a=3 b=5 c=7 d=0 e=1 f=2 g=4 h=6 c? 7 (right: 7")
    assert "looked at c=7 " in asked.output
