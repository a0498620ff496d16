"""Marks the tests of the habit (``pytest -m quick``), and prints the worst errors of a run beside their tolerances
(``pytest -v``).
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tolerances

import gpulstm

# Of every promise a few tests, which say within a minute, once kernels are compiled, whether it still holds: files, and
# what the names of their tests match.
QUICK = {
    "interchange/test_round_trips.py": "safetensors",
    "interchange/test_state_dicts.py": "",
    "test_cells.py": "register|declar|struct",
    "test_checkpoint.py": "",
    "test_classify_data.py": "",
    "test_cli.py": "bad|wrong|contradict|divergence|early_stopping|no_clipping|cuda",
    "test_ctc.py": "alignments|row|bad",
    "test_decoding.py": "",
    "test_disk_cache.py": "",
    "test_dispatch.py": "",
    "test_kernels.py": r"lstm-float32-(one step|odd)\]|products",
    "test_language.py": "",
    "test_language_check.py": "",
    "test_language_errors.py": "",
    "test_language_names.py": "",
    "test_layouts.py": "other_layers|lies_well|fit|whole_numbers",
    "test_losses.py": "",
    "test_memory_limit.py": "",
    "test_nn_layers.py": "",
    "test_noise.py": "known|probability|begins|wrong",
    "test_optim.py": "",
    "test_packing.py": "",
    "test_quantized.py": "rounded|close|bad",
    "test_reference.py": "",
    "test_stream.py": "lstm-float32",
    "test_structure.py": "",
    "test_tasks.py": "",
    "test_text_lanes.py": "lanes",
    "test_text_model.py": "lanes|sampl|bits",
    "test_torch_model.py": "steps|resumed|shared|refused",
    "test_torch_parity.py": r"random_configuration\[\d-",
    "test_train.py": "",
    "test_train_divergence.py": "",
    "test_train_folder.py": "",
    "test_train_terminal.py": "",
    "test_wrong_calls.py": "",
}
TESTS = Path(__file__).parent

# Kernels take seconds to compile. The README's test command takes those of an LSTM in float32; they stand for the
# others, which the slow lane takes.
OTHER_KERNELS = re.compile(
    "float64|bf16|int8|panels|project|rnn|gru|peephole|time_gap|indrnn|min(gru|lstm)|slstm|zoneout|dropout|layer_norm|multiplicative|resets"
)
OF_KERNELS = (
    "test_cell_parts.py",
    "test_dropin_cells.py",
    "test_dropin_cells_transforms.py",
    "test_dropin_modules.py",
    "test_dropin_operator.py",
    "test_dropin_parity.py",
    "test_dropin_replace.py",
    "test_heads.py",
    "test_interrupt.py",
    "test_isolation.py",
    "test_keras_files.py",
    "test_kernels.py",
    "test_quantized.py",
    "test_reversed_layer.py",
    "test_staged_cells.py",
    "test_stream.py",
    "test_stream_parts.py",
    "test_tapes.py",
    "test_torch_parity.py",
)
LANES = ("emulator", "simulator", "compile_matrix", "inductor", "gpu")


def _quick(path: Path) -> str | None:
    return QUICK.get(path.relative_to(TESTS).as_posix())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without a quick test are not even imported."""
    asked = config.option.markexpr == "quick" and collection_path.name.startswith("test_")
    return True if asked and _quick(collection_path) is None else None


def _compiles_other_kernels(item: pytest.Item) -> bool:
    given = getattr(getattr(item, "callspec", None), "params", {})
    if given.get("backend") == "reference":
        return False
    named = item.path.name in OF_KERNELS and OTHER_KERNELS.search(item.name.lower())
    return bool(named or given.get("projected"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _compiles_other_kernels(item) and not any(item.get_closest_marker(lane) for lane in LANES):
            item.add_marker("slow")
        pattern = _quick(item.path)
        if pattern is not None and re.search(pattern, item.name) and not item.get_closest_marker("slow"):
            item.add_marker("quick")


@pytest.fixture
def in_numpy() -> Iterator[None]:
    """For tests of what is no matter of kernels, which would take seconds to compile."""
    with gpulstm.use_backend("reference"):
        yield


@pytest.fixture(autouse=True)
def own_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that a test registers is gone after it, so that tests may give two cells one name."""
    if cells := sys.modules.get("gpulstm.cells"):
        monkeypatch.setattr(cells, "_cells", dict(cells._cells))


def pytest_collection(session: pytest.Session) -> None:
    """While imports and tests pile up there is nothing to collect, and looking for it takes seconds of each worker."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there to stay, such as torch's hundred thousands of objects, is not looked at by each collection."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.verbose > 0 or not tolerances.worst:
        return
    terminalreporter.section("worst errors")
    for line, found in sorted(tolerances.worst.items()):
        what, dtype = line
        terminalreporter.write_line(f"{what:12} {dtype}  {found:.2g} of {tolerances.TOLERANCES[line]:.2g} allowed")
