"""A language model of text: bits per character, samples, the task."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from text_files import PROSE, fill

from gpulstm import nn
from gpulstm.data.text import read
from gpulstm.tasks.text import Settings, TextTask, build, evaluate, sample


def bigram(table: np.ndarray) -> Any:
    """A model without memory: the logits for an input are its row of ``table``."""
    return lambda ids, state=None: (table[ids], state)


def test_bits_per_character():
    uniform = bigram(np.zeros((256, 256), np.float32))
    assert evaluate(uniform, [b"x" * 999])["bits_per_char"] == pytest.approx(8 * 1000 / 999)
    assert evaluate(uniform, ["é".encode() * 999])["bits_per_char"] == pytest.approx(16 * 999.5 / 999)
    latin = "é".encode("latin-1") * 999
    assert evaluate(uniform, [latin])["bits_per_char"] == pytest.approx(8 * 1000 / 999)
    assert evaluate(uniform, [b"x" * 999])["loss"] == pytest.approx(math.log(256))
    assert evaluate(uniform, [b"x" * 9] * 10)["bits_per_char"] == pytest.approx(8 * 100 / 90)


@pytest.mark.parametrize(("lanes", "window"), [(1, 1), (1, 10_000), (3, 7), (64, 128), (5, 50)])
def test_every_byte_is_measured_once(lanes, window):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((256, 256)).astype(np.float32)
    documents = [rng.integers(1, 128, size, np.uint8).tobytes() for size in (500, 1, 77)]
    stream = np.frombuffer(b"\0" + b"\0".join(documents) + b"\0", np.uint8)
    probability = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    bits = -np.log2(probability[stream[:-1], stream[1:]]).sum()
    found = evaluate(bigram(table), documents, lanes=lanes, window=window)
    assert found["bits_per_char"] == pytest.approx(bits / 578, rel=1e-5)
    assert found["loss"] == pytest.approx(bits * math.log(2) / 581, rel=1e-5)


def test_a_limit_looks_at_all_lanes():
    seen = []

    def model(ids: np.ndarray, state: Any = None) -> Any:
        seen.append(ids)
        return np.zeros((*ids.shape, 256), np.float32), state

    evaluate(model, [b"a" * 1000 + b"b" * 1000], lanes=4, window=16, limit=80)
    ids = np.concatenate(seen)
    assert ids.shape == (20, 4)
    assert (ids[:, 0] == [0] + [97] * 19).all()
    assert (ids[:, 3] == 98).all()


CONFIG = {"cell": "lstm", "embed": 5, "hidden": 7, "layers": 2, "dropout": 0.1, "init": "uniform", "seed": 3}


def test_the_state_is_carried_through_an_evaluation():
    model = build(CONFIG)
    document = PROSE.encode() * 5
    ids = np.frombuffer(b"\0" + document + b"\0", np.uint8)
    loss, _ = nn.cross_entropy(model(ids[:-1, None])[0], ids[1:, None])
    assert evaluate(model, [document], lanes=1, window=9)["loss"] == pytest.approx(loss, rel=1e-5)


def test_sampling_is_reading_on():
    model = build(CONFIG)
    for name, value in model.params.items():
        value *= 1 if name.startswith("0") else 3  # so that it has opinions
    written = bytearray(b"\0ab")
    for _ in range(30):
        logits, _ = model(np.frombuffer(bytes(written), np.uint8)[:, None])
        written.append(int(logits[-1, 0].argmax()))
    expected = bytes(written[3:]).replace(b"\0", b"\n").decode(errors="replace")
    assert sample(model, "ab", 30, temperature=0) == expected
    assert sample(model, "ab", 30, temperature=1e-300) == expected
    assert sample(model, "ab", 30, top_k=1) == expected


def test_sampling_follows_the_probabilities():
    table = np.full((256, 256), -30, np.float32)
    table[:, ord("a")], table[:, ord("b")], table[:, ord("c")] = 0, 1, -1
    model = bigram(table)
    for temperature, top_k in ((1.0, None), (2.0, None), (1.0, 2)):
        counts = Counter(sample(model, "", 5000, temperature=temperature, top_k=top_k, rng=0))
        weights = {"a": 1.0, "b": math.exp(1 / temperature), "c": math.exp(-1 / temperature)}
        if top_k:
            del weights["c"]
        assert counts.keys() == weights.keys()
        for character, weight in weights.items():
            assert counts[character] / 5000 == pytest.approx(weight / sum(weights.values()), abs=0.03)


def test_a_model_whose_logits_are_not_finite_is_named():
    model = build(CONFIG)
    for value in model.params.values():
        value[...] = np.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="model: expected finite logits"):
            sample(model, "a", 3, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.8, 5.0])
def test_a_sample_in_utf8_is_whole_characters(temperature):
    model = build(CONFIG)
    for seed in range(5):
        for prompt in ("", "größe"):
            written = sample(model, prompt, 200, temperature=temperature, rng=seed, utf8=True)
            assert "\ufffd" not in written
            assert 197 <= len(written.encode()) <= 200
        assert len(sample(model, "", 3, top_k=1, rng=seed, utf8=True)) <= 3


def test_samples_depend_on_the_seed_alone():
    model = build(CONFIG)
    assert sample(model, rng=1) == sample(model, rng=1) != sample(model, rng=2)
    assert sample(model, length=0) == ""
    sample(model, "é中\udcff", 10)  # any prompt, bytes that are no UTF-8 included


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": -1}, "length: expected an integer >= 0, got -1"),
        ({"temperature": -0.1}, r"temperature: expected a number in \[0, inf\), got -0.1"),
        ({"temperature": math.nan}, r"temperature: expected a number in \[0, inf\), got nan"),
        ({"top_k": 0}, "top_k: expected an integer >= 1, got 0"),
        ({"top_k": 257}, "top_k: expected at most 256, the number of bytes, got 257"),
    ],
)
def test_bad_sampling(options, message):
    with pytest.raises(ValueError, match=message):
        sample(build(CONFIG), **options)


def test_the_task(tmp_path):
    fill(tmp_path, 30)
    settings = Settings(embed=5, hidden=7, layers=2, batch=3, seq_len=11, seed=9, dropout=0.2)
    corpus = read(tmp_path)
    task, again = TextTask(settings, corpus), TextTask(settings, corpus)
    assert task.config["data"] == corpus.digest
    for name, value in task.model.params.items():
        np.testing.assert_array_equal(value, again.model.params[name])
    assert task.validate().keys() == {"loss", "bits_per_char"}
    assert task.evaluate()["bits_per_char"] == pytest.approx(8, abs=1.5)
    assert Settings.of(settings.as_json() | {"of a later version": 1}) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden: expected an integer >= 1, got 0"),
        ({"layers": -2}, "layers: expected an integer >= 1, got -2"),
        ({"embed": 0}, "embed: expected an integer >= 1, got 0"),
        ({"batch": 0}, "batch: expected an integer >= 1, got 0"),
        ({"seq_len": 0}, "seq_len: expected an integer >= 1, got 0"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"lr": 0.0}, r"lr: expected a number in \(0, inf\), got 0.0"),
        ({"clip": math.nan}, r"clip: expected a number in \(0, inf\], got nan"),
        ({"warmup": 1.5}, r"warmup: expected a number in \[0, 1\), got 1.5"),
        ({"minutes": -1.0}, r"minutes: expected a number in \(0, 1e15\], got -1.0"),
        ({"steps": 0}, "steps: expected an integer >= 1, got 0"),
        ({"steps": 1, "epochs": 1.0}, "limit: expected one of steps, epochs and minutes, got {'steps': 1, 'epochs'"),
        ({"optimizer": "adm"}, "optimizer: expected one of sgd, rmsprop, adam, adamw, got 'adm'"),
        ({"schedule": "step"}, "schedule: expected one of constant, cosine, plateau, got 'step'"),
        ({"init": "zeros"}, "init: expected one of uniform, recommended, got 'zeros'"),
        ({"device": "tpu"}, "device: expected one of auto, cpu, cuda, got 'tpu'"),
        ({"metrics": ("xml",)}, "metrics: expected one of jsonl, csv, tensorboard, got 'xml'"),
        ({"patience": 0}, "patience: expected an integer >= 1, got 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)
