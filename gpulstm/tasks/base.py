"""What the command line needs of a task besides what the trainer does: settings, data, and what is shown at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .. import checks, parsing
from ..train.checkpoint import MODEL, RECORD, Checkpoint, CheckpointError
from ..train.options import Options
from ..train.task import Task

Shape = tuple[int, ...]
Done = Callable[[int, int], None]  # is called with how many of how many units of reading are done


class Data(Protocol):
    """What a task learns from and is measured on."""

    @property
    def source(self) -> str:
        """Where it is from, for people."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to it, for people."""

    def describe(self) -> str:
        """One line for people."""


class CommandTask(Task):
    """Base of the tasks of ``gpulstm train``. The first line of a subclass's docstring is the command's help.

    A subclass is made of its settings and data, and defines what raises NotImplementedError here.
    """

    name: ClassVar[str]
    """Of the command, in :data:`gpulstm.tasks.TASKS`, and in checkpoints."""
    settings_class: ClassVar[type[Options]]
    """The settings of the command; a field that is ``digested`` says where the data is."""
    figures: ClassVar[tuple[str, ...]]
    """Which of the numbers that :meth:`evaluate` gives the command's JSON holds."""
    reading_unit: ClassVar[str] = "B"
    """What is counted while data is read and looked at, as people are shown it."""
    uses: ClassVar[Mapping[str, type]] = {}
    """The options of commands for its trained models, classes of fields, by the names in :data:`gpulstm.tasks.USES`."""

    def __init__(self, settings: Any, data: Any) -> None:
        raise NotImplementedError

    @classmethod
    def read(cls, settings: Any, progress: Done | None = None) -> Any:
        """The :class:`Data` that ``settings`` ask for."""
        raise NotImplementedError

    @classmethod
    def expected_shapes(cls, config: parsing.Fields, found: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of the parameters of a model, by name, from its configuration in a checkpoint.

        Nothing of it is made yet, and sizes that are absurd must cost neither time nor memory: they are compared first
        with the shapes ``found`` in the checkpoint.

        Raises:
            ValueError, TypeError: a field is missing or wrong, or contradicts ``found``; the message names it.
        """
        raise NotImplementedError

    @classmethod
    def build(cls, config: Mapping[str, Any], device: str) -> Any:
        """The model that ``config`` describes, for parameters that are loaded next."""
        raise NotImplementedError

    @classmethod
    def checked_config(cls, saved: Checkpoint) -> dict[str, Any]:
        """The configuration in a checkpoint, once it is that of the parameters beside it.

        Raises:
            CheckpointError: it is not.
        """
        found = {name: value.shape for name, value in saved.model.items()}
        try:
            config = parsing.Fields(saved.record, "record").fields("config")
            expected = cls.expected_shapes(config, found)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{saved.path / RECORD}: {error}") from error
        if wrong := sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)):
            needed, given = (of.get(wrong[0], "no such tensor") for of in (expected, found))
            raise CheckpointError(f"{saved.path / MODEL}: {wrong[0]}: expected {needed}, got {given}")
        return config.value

    @classmethod
    def restored(cls, saved: Checkpoint, device: str = "cpu") -> Any:
        """The model of a checkpoint, on ``device``.

        Raises:
            CheckpointError: its parameters are not those of the model that it describes.
        """
        model = cls.build(cls.checked_config(saved), device)
        try:
            model.load_state_dict(saved.model)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{saved.path / MODEL}: {error}") from error
        return model

    @classmethod
    def settings_of(cls, saved: Checkpoint) -> Options:
        """The settings of a run that is resumed.

        Raises:
            CheckpointError: its settings are none, or of another model than its parameters.
        """
        config, file = cls.checked_config(saved), saved.path / RECORD
        try:
            stored = parsing.Fields(saved.record, "record").fields("settings").value
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: {error}") from error
        try:
            settings = cls.settings_class.of(stored)
            for name in settings.fixed():
                expected, found = parsing.Fields(config, "record.config").take(name), getattr(settings, name)
                if name not in settings.digested() and found != expected:
                    raise ValueError(f"{name}: {checks.shown(found)}, but record.config has {checks.shown(expected)}")
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: record.settings: {error}") from error
        return settings

    @classmethod
    def config_of(cls, settings: Any, data: Data) -> dict[str, Any]:
        """What must be the same for a run to be resumed: the task, the fixed settings, and the data's digest."""
        fixed = {name: getattr(settings, name) for name in settings.fixed()}
        return {"task": cls.name, **fixed, **dict.fromkeys(settings.digested(), data.digest)}

    def notes(self) -> dict[str, Any]:
        """JSON that the checkpoint keeps with the settings, for those who use the model."""
        return {}

    def evaluate(self, progress: Done | None = None) -> dict[str, float]:
        """As :meth:`validate`, on all that is held out."""
        raise NotImplementedError

    def diverged(self, training: float, held_out: float) -> str | None:
        """Why a run that ends with these losses has diverged, None if it has not."""
        return None

    def summary(self, quality: Mapping[str, float]) -> str:
        """What :meth:`evaluate` found, in a few words."""
        raise NotImplementedError

    def show(self) -> str:
        """What people see at the end of a run."""
        raise NotImplementedError

    def picture(self, path: Path) -> None:
        """Draw what people see at the end of a run into ``path``, a PNG, with matplotlib; by default there is none."""
        raise NotImplementedError

    @classmethod
    def use(cls, name: str, saved: Checkpoint, options: Any, device: str) -> str:
        """What the command ``name`` prints of a trained model; ``options`` is one of ``uses[name]``."""
        raise NotImplementedError
