"""Sentences for the speech task: sound files, what is made of them, how they are listed and split, and the command."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import error, invoke, last_json

from gpulstm.data import audio, packages
from gpulstm.data.sentences import Sentences, read, sentences, spelt, utterance
from gpulstm.train import checkpoint

RATE = 8000
WORDS = ("ab", "ba", "a", "b", "aab", "bba", "abab")
SMALL = ["--hidden=8", "--batch=4", "--validate-every=4", "--schedule=plateau"]


def write(path: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes((32767 * samples).astype("<i2").tobytes())
    return path


def sung(text: str, seed: int = 0) -> np.ndarray:
    """A tone a letter, 0.15 s each, with pauses between."""
    at = np.arange(int(0.15 * RATE)) / RATE
    pieces = [np.zeros(500)]
    for letter in text:
        pieces += [0.5 * np.sin(2 * np.pi * (400.0 if letter == "a" else 1500.0) * at) * (letter != " "), np.zeros(500)]
    samples = np.concatenate(pieces)
    return samples + 0.01 * np.random.default_rng(seed).standard_normal(len(samples))


def texts(count: int) -> list[str]:
    return [f"{WORDS[k % 7]} {WORDS[k // 7 % 7]}" for k in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in LibriSpeech's layout."""
    root = tmp_path_factory.mktemp("speech")
    for chapter in ("1/2", "1/3"):
        (root / chapter).mkdir(parents=True)
        name = chapter.replace("/", "-")
        lines = []
        for number, text in enumerate(texts(40)):
            write(root / chapter / f"{name}-{number:04}.wav", sung(text, number))
            lines.append(f"{name}-{number:04} {text.upper()}\n")
        (root / chapter / f"{name}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return root


# Sound


def test_samples_are_those_of_the_file(tmp_path: Path) -> None:
    given = np.sin(np.arange(900) / 9)
    samples, rate = audio.read_wav(write(tmp_path / "a.wav", given, 16000))
    assert rate == 16000
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, given * 32767 / 32768, atol=1 / 32768)


def test_bad_sound_is_named(tmp_path: Path) -> None:
    speech = np.sin(np.arange(900) / 9)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "speech.flac").write_bytes(b"fLaC")
    cut = write(tmp_path / "cut.wav", speech).read_bytes()
    (tmp_path / "cut.wav").write_bytes(cut[:-100])
    write(tmp_path / "stereo.wav", speech, channels=2)
    write(tmp_path / "bytes.wav", speech, width=1)
    write(tmp_path / "silent.wav", np.zeros(1000))
    write(tmp_path / "nothing.wav", np.zeros(0))
    write(tmp_path / "slow.wav", speech, rate=1000)
    for name, message in (
        ("text.wav", "expected a WAV file: file does not start with RIFF id"),
        ("empty.wav", "expected a WAV file: it ends too early"),
        ("speech.flac", "expected a .wav file of one channel and 16 bits"),
        ("cut.wav", "cut short: expected 900 samples, got 850"),
        ("stereo.wav", "expected one channel of 16 bits, got 2 of 16"),
        ("bytes.wav", "expected one channel of 16 bits, got 1 of 8"),
        ("silent.wav", "expected speech, got silence of 0.125 s"),
        ("nothing.wav", "expected speech, got nothing of 0.000 s"),
        ("slow.wav", "expected at least 4000 samples a second, got 1000"),
    ):
        with pytest.raises(ValueError, match="expected") as raised:
            audio.read_wav(tmp_path / name)
        assert str(raised.value) == f"{tmp_path / name}: {message}"


def test_the_mel_scale_has_its_known_points() -> None:
    np.testing.assert_allclose(audio.mel(np.array([0, 200, 1000, 6400.0])), [0, 3, 15, 42])
    points = np.linspace(0, 60, 200)
    np.testing.assert_allclose(audio.mel(audio.hertz(points)), points, atol=1e-12)


def test_bands_hold_the_energy_of_a_tone() -> None:
    """In the band around the tone, in proportion to its square, and alike wherever the triangles overlap."""
    at = np.arange(RATE) / RATE
    for frequency in (300.0, 1000.0, 3000.0):
        loud, quiet = (audio.log_mel(amplitude * np.sin(2 * np.pi * frequency * at), RATE) for amplitude in (0.8, 0.4))
        assert loud.shape == (98, audio.BANDS)  # (8000 - 200) // 80 + 1
        edges = audio.hertz(np.linspace(0, audio.mel(np.array(RATE / 2)), audio.BANDS + 2))
        band = loud.mean(axis=0).argmax()
        assert edges[band] < frequency < edges[band + 2]
        np.testing.assert_allclose(loud[:, band] - quiet[:, band], 2 * np.log(2), rtol=1e-3)


def test_a_frame_by_definition() -> None:
    samples = np.random.default_rng(0).standard_normal(200)
    window = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / 200) for n in range(200)])
    at = np.arange(129)
    transform = np.exp(-2j * np.pi * np.outer(at, np.arange(200)) / 256) @ (samples * window)
    power = np.abs(transform) ** 2 / sum(window**2)
    edges = audio.hertz(np.linspace(0, audio.mel(np.array(4000.0)), 42))
    expected = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        heights = np.interp(at * 8000 / 256, [low, middle, high], [0, 2 / (high - low), 0])
        expected.append(np.log(heights @ power + 1e-8))
    np.testing.assert_allclose(audio.log_mel(samples, 8000)[0], expected, rtol=1e-5, atol=1e-5)


def test_steps_are_frames_side_by_side() -> None:
    samples = np.random.default_rng(0).standard_normal(1000)
    frames, found = audio.log_mel(samples, RATE), audio.steps(samples, RATE)
    assert (len(frames), found.shape) == (11, (4, 120))
    np.testing.assert_array_equal(found.reshape(12, 40)[:11], frames)
    np.testing.assert_array_equal(found[3, 80:], frames[10])


# Texts


def test_spelling() -> None:
    assert spelt("  Don’t PANIC, it's 2-3!\n") == "don't panic it's 2 3"
    assert spelt("...") == ""


@pytest.fixture(scope="module")
def data(folder: Path) -> Sentences:
    return read(folder)


def test_sentences_of_one_text_are_in_one_part(data: Sentences) -> None:
    parts = [{sentence.text for sentence in part} for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [33, 2, 5]
    assert set.union(*parts) == set(texts(40))
    assert len(data.train) == 66  # each text is there twice
    assert data.symbols == (" ", "a", "b")
    steps = np.concatenate([sentence.values for sentence in data.train]).astype(np.float64)
    np.testing.assert_allclose(data.mean, steps.mean(axis=0))
    np.testing.assert_allclose(data.deviation, steps.std(axis=0))
    assert data.rate == RATE


def test_a_symbol_of_the_test_part_alone_is_no_label(data: Sentences) -> None:
    found = utterance(data.test[0].values, "a z b", data.symbols, data.mean, data.deviation)
    assert found.labels.tolist() == [2, 1, 1, 3]
    assert found.text == "a z b"


def test_a_table_lists_the_same(folder: Path, tmp_path: Path) -> None:
    own = [line.split(" ", 1) for line in (folder / "1/2/1-2.trans.txt").read_text().splitlines()]
    (tmp_path / "list.tsv").write_text("".join(f"{folder}/1/2/{name}.wav\t{text}\n" for name, text in own))
    found = sentences(tmp_path / "list.tsv", RATE)
    assert [sentence.text for sentence in found] == texts(40)
    with pytest.raises(ValueError, match="expected 16000 samples a second, as the model was trained on, got 8000"):
        sentences(tmp_path / "list.tsv", 16000)


def test_bad_lists_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", sung("ab"))
    write(tmp_path / "b.wav", sung("ab"), rate=16000)
    table = tmp_path / "list.tsv"
    for text, message in (
        ("a.wav\tab\nc.wav\tab\n", f"{table}, line 2: the sound file {tmp_path / 'c.wav'} is not there"),
        ("a.wav\tab\n\na.wav ab\n", f"{table}, line 3: expected a sound file and its text, got 'a.wav ab'"),
        ("a.wav\t...\n", f"{table}, line 1: expected a sound file and its text, got no text"),
        ("a.wav\tab\nb.wav\tab\n", f"got 8000 Hz in {tmp_path / 'a.wav'} and 16000 Hz in {tmp_path / 'b.wav'}"),
        ("a.wav\tab\n", f"data: {table}: expected at least 20 different texts, got 1"),
        (f"a.wav\t{'ab' * 100}\n", "data: expected a sentence at least, got 1, all with more text than sound"),
        ("\n", f"data: {table}: expected files *.trans.txt with sentences, or a TSV file, got none"),
        (b"a.wav\t\xff\n", f"{table}: expected UTF-8: "),
    ):
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert message in error(invoke("train", "speech", "--data", table, "--out", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    message = error(invoke("train", "speech", "--data", tmp_path / "empty", "--out", tmp_path / "out"))
    assert "expected files *.trans.txt with sentences, or a TSV file, got none" in message


# The command


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--hidden=16", "--batch=8", "--lr=0.02", "--dropout=0", "--noise=0.1", "--epochs=40", "--patience=99"]
    result = invoke("train", "speech", "--data", folder, "--out", out, *options, "--validate-every=40", "--json")
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.mark.slow
def test_it_learns_to_spell(run: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    out, printed = run
    assert last_json(printed)["error_rate"] < 0.1
    assert "of characters wrong" in printed
    single = write(tmp_path / "new.wav", sung("abba b", 99))
    result = invoke("transcribe", "--checkpoint", out, "--data", single)
    name, said = result.output.splitlines()[0].split("\t")
    assert name == str(single)
    assert sum(a == b for a, b in zip(said, "abba b", strict=False)) >= 5
    result = invoke("transcribe", "--checkpoint", out, "--data", folder)
    assert len(result.output.splitlines()) == 81
    assert result.output.splitlines()[-1].endswith("% exact")


@pytest.mark.slow
def test_resumed_it_has_the_same_bits(folder: Path, tmp_path: Path) -> None:
    arguments: list[Any] = ["train", "speech", "--data", folder, *SMALL]
    assert invoke(*arguments, "--out", tmp_path / "whole", "--steps", 9).exit_code == 0
    assert invoke(*arguments, "--out", tmp_path / "half", "--steps", 4).exit_code == 0
    assert invoke("train", "speech", "--out", tmp_path / "half", "--resume", "--steps", 9).exit_code == 0
    first, second = (checkpoint.load(tmp_path / name) for name in ("whole", "half"))
    assert {name: value.tobytes() for name, value in first.model.items()} == {
        name: value.tobytes() for name, value in second.model.items()
    }
    assert first.record["data"] == second.record["data"]
    result = invoke("transcribe", "--checkpoint", tmp_path / "whole", "--data", folder / "1/2/1-2-0003.wav")
    assert result.output.startswith(f"{folder / '1/2/1-2-0003.wav'}\t")
    assert len(result.output.splitlines()) == 1  # no text to compare with
    (tmp_path / "list.tsv").write_text(f"{folder}/1/2/1-2-0003.wav\t{'ab' * 100}\n")  # more text than sound
    result = invoke("transcribe", "--checkpoint", tmp_path / "whole", "--data", tmp_path / "list.tsv")
    assert result.output.splitlines()[-1].endswith(" % of symbols wrong, 0.00 % exact")
    bad = write(tmp_path / "other.wav", sung("ab"), rate=16000)
    message = error(invoke("transcribe", "--checkpoint", tmp_path / "whole", "--data", bad))
    assert f"data: {bad}: expected 8000 samples a second, as the model was trained on, got 16000" in message


def test_names_below_a_root_keep_their_folders() -> None:
    assert packages._place("usr/x/digits/1.wav", "usr/x") == "digits/1.wav"
    assert packages._place("usr/x/1.wav", "usr/x") == "1.wav"
    assert packages._place("usr/doc/text.gz", "usr/x") == "text.gz"
    assert packages._place("usr/x/../../1.wav", "usr/x") == "1.wav"
    assert packages._place("a/b/c.csv", "") == "c.csv"
