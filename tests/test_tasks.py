"""The registry of tasks, the settings that all of them share, and the options that the command line makes of these."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import click
import numpy as np
import pytest
from click.testing import CliRunner

from gpulstm import nn, parsing, tasks
from gpulstm.cells import lstm
from gpulstm.cli import cli, flags
from gpulstm.cli.uses import UseCommand
from gpulstm.config import Config
from gpulstm.data import Batch
from gpulstm.tasks import CommandTask
from gpulstm.tasks.text import Settings, TextTask, build, sizes
from gpulstm.train import Checkpoint, CheckpointError, Choice, Choices, Integer, Options, Real, checkpoint, field
from gpulstm.train.ends import Limit

SMALL = ["--embed=2", "--hidden=3", "--batch=2", "--seq-len=8", "--validate-every=0"]


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("a small text that is learnt " * 20)
    result = invoke("train", "text", "--data", folder / "text.txt", "--out", folder / "out", "--steps", 2, *SMALL)
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_registered_task_has_its_parts(name: str) -> None:
    task = tasks.named(name)
    assert issubclass(task, CommandTask)
    assert task.name == name
    assert issubclass(task.settings_class, Options)
    assert {"data", "seed", "optimizer"} <= set(task.settings_class.fixed())
    assert task.settings_class.digested() == ("data",)
    assert task.metric in task.figures
    assert name in invoke("train", "--help").output


def test_an_unknown_task() -> None:
    with pytest.raises(ValueError, match=r"task: expected one of text, .*got 'txet'"):
        tasks.named("txet")


def test_a_checkpoint_says_its_task(run: Path, tmp_path: Path) -> None:
    task, saved = tasks.load(run)
    assert task is TextTask
    assert saved.record["config"]["task"] == "text"
    for name in ("adding", 3, [], None):
        record = saved.record | {"config": saved.record["config"] | {"task": name}}
        other = checkpoint.save(tmp_path / f"{name}", 2, saved.model, saved.training, record)
        with pytest.raises(CheckpointError, match=r"checkpoint.json: record.config: task is .*, expected 'text'"):
            tasks.load(other)


def test_a_checkpoint_without_a_task_is_refused(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run)
    config = {name: value for name, value in saved.record["config"].items() if name != "task"}
    checkpoint.save(tmp_path / "old", 2, saved.model, saved.training, saved.record | {"config": config})
    with pytest.raises(CheckpointError, match=r"checkpoint.json: record.config.task: missing; expected 'text'"):
        tasks.load(tmp_path / "old")


def test_sizes_are_those_of_the_model() -> None:
    for layers in (1, 3):
        config = {"embed": 5, "hidden": 7, "layers": layers, "dropout": 0.1, "init": "uniform", "seed": 3}
        built = {name: value.shape for name, value in build(config).params.items()}
        assert sizes(config).shapes() == built
        sizes(config).check_found(built, "config")


@attrs.frozen
class Toy(Options):
    """Settings of a task of its own."""

    data: str | None = field(None, Integer(), "", fixed=True)
    horizon: int = field(24, Integer(2), "Steps ahead.", fixed=True)
    share: float = field(0.5, Real("(0, 1)"), "Of something.")
    kinds: tuple[str, ...] = field(("a", "b"), Choices(("a", "b", "c")), "Which.", metavar="KIND")


def test_options_are_made_of_fields() -> None:
    made = {option.name: option for option in flags.of(Toy)}
    assert list(made)[:4] == ["data", "horizon", "share", "kinds"]
    assert made.keys() == {each.name for each in attrs.fields(Toy)}
    context = click.Context(click.Command("toy", params=list(made.values())))
    text = {name: " ".join(option.get_help_record(context) or ()) for name, option in made.items()}
    for name, parts in {
        "horizon": ("--horizon", "Steps ahead. [default: 24]", "x>=2"),
        "share": ("[default: 0.5]", "0.0<x<1.0"),
        "kinds": ("KIND", "[default: a, b]"),
        "clip": ("[default: 1.0]", "x>0.0"),
        "optimizer": ("[sgd|rmsprop|adam|adamw]", "[default: adam]"),
    }.items():
        for part in parts:
            assert part in text[name]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("horizon", "1", "horizon: expected an integer >= 2, got 1"),
        ("share", "1", "share: expected a number in (0, 1), got 1.0"),
        ("share", "nan", "share: expected a number in (0, 1), got nan"),
        ("kinds", "d", "kinds: expected one of a, b, c, got 'd'"),
        ("weight-decay", "-1", "weight_decay: expected a number in [0, inf), got -1.0"),
        ("clip", "0", "clip: expected a number in (0, inf], got 0.0"),
        ("device", "tpu", "device: expected one of auto, cpu, cuda, got 'tpu'"),
    ],
)
def test_a_range_is_checked_alike_on_the_command_line_and_in_python(flag: str, value: str, message: str) -> None:
    command = click.Command("toy", params=flags.of(Toy))
    with pytest.raises(ValueError) as told:  # noqa: PT011  # the message is compared below
        command.make_context("toy", [f"--{flag}", value])
    assert str(told.value) == message
    given: Any = (value,) if flag == "kinds" else value if flag == "device" else float(value)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        Toy(**{flag.replace("-", "_"): int(given) if flag == "horizon" else given})
    assert str(raised.value) == message


def test_values_of_another_type_are_named() -> None:
    for name, value in (("horizon", 2.5), ("share", "x"), ("kinds", "ab"), ("seed", None), ("backend", 3)):
        with pytest.raises(TypeError, match=f"^{name}: expected "):
            Toy(**{name: value})


def test_options_that_are_not_given_are_none() -> None:
    context = click.Command("toy", params=flags.of(Toy)).make_context("toy", ["--clip", "inf", "--kinds", "c"])
    assert {name: value for name, value in context.params.items() if value not in (None, ())} == {
        "clip": math.inf,
        "kinds": ("c",),
    }


def test_a_limit_takes_the_place_of_another() -> None:
    settings = Settings(steps=5, lr=0.1)
    assert settings.changed(minutes=2.0).limits() == {"minutes": 2.0}
    assert settings.changed(lr=0.2).limits() == {"steps": 5}
    assert Settings().limits() == {"minutes": 5.0}
    assert Settings.of(settings.as_json()) == settings


@pytest.mark.parametrize("name", ["steps", "epochs", "minutes"])
def test_limits_have_one_range(name: str) -> None:
    given: dict[str, Any] = {name: 10**16}
    message = rf"{name}: expected a number in \(0, 1e15\], got 10000000000000000"
    with pytest.raises(ValueError, match=message):
        Settings(**given)
    with pytest.raises(ValueError, match=message):
        Limit.of(**{"steps": None, "epochs": None, "minutes": None, **given}, steps_per_epoch=1)


def test_settings_make_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a small text that is learnt " * 20)
    settings = Settings(str(tmp_path / "text.txt"), embed=2, hidden=3, batch=2, seq_len=8, patience=2, clip=0.5, keep=7)
    trainer = settings.make_trainer(TextTask(settings, TextTask.read(settings)))
    assert (trainer.clip, trainer.keep, trainer.early_stopping.patience) == (0.5, 7, 2)
    assert trainer.optimizer.lr == np.float64(3e-3)
    assert trainer.settings == settings.as_json()


# A further task, from the command line to its checkpoint


@attrs.frozen
class AddingSettings(Options):
    data: str | None = field(None, Choice(("small", "large")), "Which numbers.", digested=True)
    hidden: int = field(4, Integer(1), "Units.", fixed=True)


class Numbers:
    """Batches of numbers and of their sums so far, whose position is the number of the next one."""

    steps_per_epoch = 5

    def __init__(self, seed: int) -> None:
        self.seed, self.position = seed, 0

    @property
    def epoch(self) -> int:
        return self.position // self.steps_per_epoch

    def next(self) -> Batch:
        x = np.random.default_rng([self.seed, self.position]).random((6, 3, 1), np.float32)
        self.position += 1
        return Batch({"inputs": x, "targets": np.cumsum(x, axis=0), "weight": np.float32([0.5])})

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = parsing.Fields(state, "state").integer("position")


@attrs.frozen
class PredictOptions:
    number: float = field(1.0, Real("[0, 1]"), "Every number of the sequence.")


class AddingTask(CommandTask):
    """Adds numbers."""

    name = "adding"
    settings_class = AddingSettings
    figures: ClassVar = ("mae",)
    unit = "numbers"
    uses: ClassVar = {"predict": PredictOptions}
    metric = "mae"

    def __init__(self, settings: AddingSettings, data: Any) -> None:
        self.config = self.config_of(settings, data)
        self.batches = Numbers(settings.seed)
        self.model = self.build(self.config, "cpu")

    @classmethod
    def read(cls, settings: AddingSettings, progress: Any = None) -> Any:
        name = settings.data or "small"
        return SimpleNamespace(source=name, digest=name * 9, notes=(), describe=lambda: f"{name} numbers")

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> Any:
        return nn.Sequential(nn.LSTM(1, config["hidden"], seed=0), nn.Linear(config["hidden"], 1, seed=1)).to(device)

    @classmethod
    def expected_shapes(cls, config: Any, found: Any) -> Any:
        hidden = config.integer("hidden", 1)
        if found.get("1.weight") != (1, hidden):
            raise ValueError(f"{config.path}.hidden: is {hidden}")
        recurrent = Config(lstm, 1, hidden).shapes()
        return {f"0.{name}": shape for name, shape in recurrent.items()} | {"1.weight": (1, hidden), "1.bias": (1,)}

    def loss(self, output: Any, batch: Batch) -> Any:
        loss, gradient = nn.mse(output, batch["targets"])
        return batch["weight"][0] * loss, batch["weight"][0] * gradient

    def validate(self) -> dict[str, float]:
        return self.evaluate()

    def evaluate(self, progress: Any = None) -> dict[str, float]:
        batch = Numbers(99).next()
        error = self.model(batch["inputs"])[0] - batch["targets"]
        return {"loss": float(np.mean(error**2)), "mae": float(np.abs(error).mean())}

    def summary(self, quality: Mapping[str, float]) -> str:
        return f"off by {quality['mae']:.3f}"

    def show(self) -> str:
        return "1 + 1 is about 2"

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: PredictOptions, device: str) -> str:
        y, _ = cls.restored(saved, device)(np.full((2, 1, 1), options.number, np.float32))
        return f"{name}: {options.number:g} + {options.number:g} is {y[-1].item():.3f}"


def test_a_further_task_has_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "adding", f"{__name__}:AddingTask")
    assert "Adds numbers." in invoke("train", "--help").output
    assert "--hidden" in invoke("train", "adding", "--help").output
    assert "--seq-len" not in invoke("train", "adding", "--help").output

    def train(out: str, *arguments: Any) -> Any:
        return invoke("train", "adding", "--out", tmp_path / out, "--json", *arguments)

    options: list[Any] = ["--data", "large", "--schedule", "constant"]
    whole = train("whole", "--steps", 7, *options)
    assert whole.exit_code == 0, whole.output
    for part in ("large numbers", "off by", " numbers/s", "1 + 1 is about 2"):
        assert part in whole.output
    train("half", "--steps", 3, *options)
    resumed = train("half", "--resume", "--steps", 7)
    summaries = [json.loads(result.output.splitlines()[-1]) for result in (whole, resumed)]
    assert summaries[0]["mae"] == summaries[1]["mae"] > 0
    assert list(summaries[0])[:3] == ["steps", "epochs", "mae"]
    for name, value in checkpoint.load(tmp_path / "whole").model.items():
        np.testing.assert_array_equal(checkpoint.load(tmp_path / "half").model[name], value)

    for changed, message in (
        (["--hidden", 5], "hidden: 5 contradicts 4 of "),
        (["--data", "small"], "data: small has SHA-256 smallsmallsm, but "),
    ):
        assert message in train("half", "--resume", *changed).output
    other = invoke("train", "text", "--out", tmp_path / "half", "--resume")
    assert "checkpoint.json: record.config: task is 'adding', expected 'text'" in other.output
    refused = invoke("sample", "--checkpoint", tmp_path / "half")
    assert refused.exit_code == 1
    assert "a model of 'adding', which cannot be sampled" in refused.output
    predict = UseCommand("predict", tasks.Use("Predict a sum.", "predicted", "adding"))
    predicted = CliRunner().invoke(predict, ["--checkpoint", str(tmp_path / "half"), "--number", "0.5"])
    assert "predict: 0.5 + 0.5 is " in predicted.output
    assert "Every number of the sequence." in CliRunner().invoke(predict, ["--help"]).output
    written = invoke("convert", tmp_path / "half", tmp_path / "adding.safetensors")
    assert "Sequential(LSTM(1, 4), Linear)" in written.output
