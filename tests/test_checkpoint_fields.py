"""A checkpoint whose digests are right and whose record is absurd: it goes on as it should, or the field is named."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulstm
from gpulstm import io, tasks
from gpulstm.cli import runs
from gpulstm.data.text import read
from gpulstm.tasks.text import Settings, TextTask
from gpulstm.train import CheckpointError, Trainer, TrainingDiverged, checkpoint

MISSING = object()
ABSURD: list[Any] = [MISSING, None, -3, 0, 100_000, 2**63, 1e24, 0.5, "x", "", [], [1], {}, {"a": 1}, True, 10**400]
Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps; its validation, state and moments are made up."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("a small text that is learnt " * 20)
    settings = Settings(str(folder / "text.txt"), embed=2, hidden=3, layers=2, batch=2, seq_len=4, schedule="plateau")
    trainer = _trainer(settings, folder / "out")
    trainer.optimizer.advance(trainer.task.model.params)
    trainer.step, trainer.loss, trainer.validation = 2, 5.5, {"loss": 5.25, "bits_per_char": 8.0}
    trainer.early_stopping.update(5.25, 2)
    trainer._elapsed, trainer._timed_seconds = 1.5, 0.5
    trainer.state = ((np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 3), np.float32)),)
    trainer.task.batches.next()
    trainer.save()
    return folder


def _trainer(settings: Any, out: Path | None = None) -> Trainer:
    stored = settings.as_json() | {"source": "here"}
    return settings.make_trainer(TextTask(settings, read(settings.data)), out, settings=stored, shown=False)


def _fields(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every field, those of fields inside each other too."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _fields(inner, (*path, key))


def _changed(body: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    inner: Any = body
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return body


def _write(folder: Path, body: dict[str, Any]) -> None:
    body = {name: value for name, value in body.items() if name != "sha256"}
    (folder / checkpoint.RECORD).write_text(json.dumps(body | {"sha256": checkpoint._digest_of(body)}))


def _resumed(out: Path) -> None:
    """What ``gpulstm train text --resume`` does, and one step."""
    saved = runs.last(runs.folder_to_resume(str(out), "text"), TextTask)
    settings: Any = runs.merged({}, saved, TextTask)
    runs.check_data(read(settings.data), saved, settings)
    trainer = _trainer(settings)
    trainer.resume(saved)
    trainer.run(steps=saved.step + 1)
    assert trainer.step == saved.step + 1


TOGETHER = {"rng": "record.rng", "steps": "limit", "epochs": "limit", "minutes": "limit", "sha256": "SHA-256"}


def _outcome(use: Callable[[], Any], path: Path_) -> str:
    """ "fine", "named", or what is wrong."""
    begun = time.monotonic()
    try:
        use()
    except TrainingDiverged as error:
        return "fine" if path[-1] == "lr" else repr(error)  # a learning rate of 1e24
    except (ValueError, TypeError) as error:
        keys = [key for key in path if isinstance(key, str)]
        named = keys[-1] in str(error) or any(TOGETHER.get(key, keys[-1]) in str(error) for key in keys)
        return "named" if named else repr(error)
    except Exception as error:
        return repr(error)
    return "fine" if time.monotonic() - begun < 10 else "slow"


@pytest.mark.slow
def test_every_field(run: Path) -> None:
    (folder,) = (run / "out").iterdir()
    file = folder / checkpoint.RECORD
    before = file.read_bytes()
    whole = json.loads(before)
    del whole["sha256"]
    uses = {"sample": lambda: tasks.restored(folder), "resume": lambda: _resumed(run / "out")}
    counts, wrong = Counter[str](), []
    with gpulstm.use_backend("reference"):
        for path in _fields(whole):
            for value in ABSURD:
                _write(folder, _changed(whole, path, value))
                shown = "missing" if value is MISSING else repr(value)[:20]
                for name, use in uses.items():
                    outcome = _outcome(use, path)
                    counts[outcome] += 1
                    if outcome not in ("fine", "named"):
                        wrong.append(f"{name}: {path} = {shown}: {outcome}")
        file.write_bytes(before)
        _resumed(run / "out")
    assert not wrong, "\n".join(wrong)
    assert counts["fine"] > 300
    assert counts["named"] > 300


@pytest.mark.parametrize("name", ["embed", "hidden", "layers"])
def test_sizes_are_compared_before_anything_is_built(run: Path, tmp_path: Path, name: str) -> None:
    """Also where settings and configuration say the same, and where the command line reads it."""
    (folder,) = (run / "out").iterdir()
    body = json.loads((folder / checkpoint.RECORD).read_text())
    for value in (2**40, 10**400, 100_000):
        out = tmp_path / "step-00000002"
        out.mkdir(exist_ok=True)
        for file in folder.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        for section in ("config", "settings"):
            body["record"][section][name] = value
        _write(out, body)
        for use in (
            lambda: tasks.restored(tmp_path),
            lambda: _resumed(tmp_path),
            lambda: io.convert(tmp_path, tmp_path / "m.safetensors"),
        ):
            with pytest.raises(CheckpointError, match=rf"checkpoint.json: record.config.{name}: "):
                use()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer.exp_avg/0.weight": np.zeros((256, 3), np.float32)}, "optimizer: .*exp_avg"),
        ({"optimizer.exp_avg/0.weight": None}, "optimizer: .*missing"),
        ({f"optimizer.exp_avg{end}/0.weight": np.zeros((256, 1), np.float32) for end in ("", "_sq")}, "0.weight"),
        ({"optimizer.step": np.array(-1)}, "optimizer: .*step"),
        ({"optimizer.lr": np.array(np.nan)}, "optimizer: .*lr"),
        ({"schedule.best": np.zeros(2)}, "schedule: .*best"),
        ({"schedule.bad": None}, "schedule: .*bad"),
        ({"state.0.0": None}, "state: expected tensors numbered from state.0 on"),
        ({"state" + ".0" * 5000: np.zeros(1)}, "state: expected tensors numbered from state.0 on"),
        ({"state.x": np.zeros(1)}, "state: expected tensors numbered from state.0 on"),
        ({"state.0.0": np.zeros((2, 3, 3), np.float32)}, r"state h: expected shape \(2, 2, 3\)"),
    ],
)
def test_arrays_that_do_not_fit(run: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    saved = checkpoint.load(run / "out")
    training = {name: value for name, value in (saved.training | change).items() if value is not None}
    checkpoint.save(tmp_path, saved.step, saved.model, training, saved.record)
    with gpulstm.use_backend("reference"), pytest.raises(ValueError, match=message):
        _resumed(tmp_path)


def test_empty_states_come_back(run: Path, tmp_path: Path) -> None:
    """Models of models have such, where one of them has no recurrent layer."""
    state = ((), (np.ones((1, 2, 3), np.float32), ()), np.zeros((1, 1, 1)), ())
    trainer = _trainer(runs.merged({}, checkpoint.load(run / "out"), TextTask), tmp_path)
    for given in (state, (), None):
        trainer.state, trainer.step = given, trainer.step + 1
        again = _trainer(runs.merged({}, checkpoint.load(run / "out"), TextTask))
        again.resume(checkpoint.load(trainer.save()))
        assert repr(again.state) == repr(given)


def test_records_that_are_out_of_bounds(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000002"
    folder.mkdir()
    for text in (
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 3000 + "1" + "}" * 3000,
        "1" * 5000,
        '{"a": NaN}',
        '{"a": 1e999}',
    ):
        (folder / checkpoint.RECORD).write_text(text)
        with pytest.raises(CheckpointError, match=r"checkpoint.json: expected JSON"):
            checkpoint.load(tmp_path)
    (folder / checkpoint.RECORD).write_bytes(b" " * (1 << 24) + b" ")
    with pytest.raises(CheckpointError, match=r"checkpoint.json: could not be read: holds .* bytes; expected at most"):
        checkpoint.load(tmp_path)


def test_what_cannot_be_read_again_is_not_written(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    for record in ({"a": deep}, {"a": 10**2000}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="JSON"):
            checkpoint.save(tmp_path, 1, {}, {}, record)
    assert list(tmp_path.iterdir()) == []
