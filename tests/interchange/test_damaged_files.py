"""Files that are cut short, of another format, or that declare too much: a WeightsError names each; nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest

import gpulstm
from gpulstm import io
from gpulstm.io import hdf5

LAYER = gpulstm.LSTM(3, 2, bidirectional=True, seed=0)
LOADS: dict[str, Callable[[Any], Any]] = {
    "m.safetensors": io.load_safetensors,
    "m.onnx": io.onnx_layers,
    "m.keras": io.load_keras,
    "m.weights.h5": io.load_keras,
}


def _write(path: Path) -> bytes:
    if path.suffix == ".safetensors":
        io.save_safetensors(LAYER, path)
    elif path.suffix == ".onnx":
        io.export_onnx(LAYER, path)
    else:
        io.save_keras(LAYER, path)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADS)
def test_cut_short_at_any_byte(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = _write(path)
    cuts = range(len(whole)) if len(whole) < 4000 else [*range(64), *range(64, len(whole), 61), len(whole) - 1]
    if path.suffix == ".h5":  # each takes a process
        cuts = [0, 7, 8, *range(9, len(whole), 2999), len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(io.WeightsError, match=name):
            LOADS[name](path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADS)
def test_bytes_changed(name: str, tmp_path: Path) -> None:
    """Whatever a byte becomes, a file loads or is refused: no other error comes out."""
    count, at_once = (12, 8) if name.endswith(".h5") else (300, 1)  # a process each; much of the file means nothing
    path = tmp_path / name
    whole = _write(path)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(count):
        changed = bytearray(whole)
        for _ in range(at_once):
            at, value = int(rng.integers(len(whole))), int(rng.integers(256))
            changed[at] = value
        path.write_bytes(changed)
        try:
            LOADS[name](path)
        except io.WeightsError as error:
            errors.append(str(error))
    assert len(errors) > count // 30
    assert all(name in error for error in errors)


@pytest.mark.slow
def test_hdf5_that_turns_in_circles(tmp_path: Path) -> None:
    """This bit makes HDF5's own library read an attribute for ever."""
    path = tmp_path / "m.weights.h5"
    io.save_keras(gpulstm.LSTM(3, 5, bidirectional=True, batch_first=True, seed=0), path)
    changed = bytearray(path.read_bytes())
    changed[1953] ^= 1 << 3
    path.write_bytes(changed)
    begun = time.monotonic()
    with pytest.raises(io.WeightsError, match=r"m.weights.h5: took longer than 5 seconds to read"):
        io.load_keras(path)
    assert time.monotonic() - begun < hdf5._START + 10


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", r"HDF5's library failed on it \(exit code -?\d+\)"),
        ("import sys; sys.stdout.buffer.write(b'ready\\n')", r"HDF5's library failed on it \(exit code 0\)"),
        ("raise ImportError", r"HDF5's library failed on it \(exit code 1\)"),
        ("print('ready\\n' + 'x' * (1 << 24))", "takes more than 16777216 bytes to describe"),
        ("print('ready\\n' + '{' * 5000)", "expected JSON"),
        ("import time; time.sleep(60)", "took longer than 1 seconds to read"),
    ],
)
def test_whatever_becomes_of_the_process(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save_keras(gpulstm.LSTM(3, 128, seed=0), tmp_path / "m.keras")  # more than a pipe holds
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(hdf5.hdf5_child, "__file__", str(tmp_path / "child.py"))
    monkeypatch.setattr(hdf5, "_START", 1.0 if "sleep" in code else 60.0)
    with pytest.raises(io.WeightsError, match=rf"m.keras: {message}"):
        io.load_keras(tmp_path / "m.keras")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes, and files without their bytes, are POSIX's")
@pytest.mark.parametrize("name", LOADS)
def test_files_that_are_never_read(name: str, tmp_path: Path) -> None:
    """A pipe with nobody at its other end, and a file that is larger than memory."""
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(io.WeightsError, match=f"{name}: could not be read: not a regular file"):
        LOADS[name](path)
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 34)
    with pytest.raises(io.WeightsError, match=rf"{name}: could not be read: holds 17179869184 bytes; expected at most"):
        LOADS[name](path)
    with pytest.raises(ValueError, match=r": expected a path, got 'a\\x00b"):
        LOADS[name](Path(f"a\0b{path.suffix}"))


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x80\x04\x95pickle", bytes(500)]
)
def test_another_format(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(io.WeightsError, match=name):
        LOADS[name](tmp_path / name)


@pytest.mark.parametrize("name", LOADS)
def test_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(io.WeightsError, match=rf"{name}: could not be read: No such file"):
        LOADS[name](tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(io.WeightsError, match=rf"{name}: could not be read: not a regular file"):
        LOADS[name](tmp_path / name)
    with pytest.raises(TypeError, match="expected a path, got int"):
        LOADS[name](3)


def _with_weights(path: Path, change: Callable[[Any], None]) -> Path:
    """The file at ``path`` with something changed in its HDF5."""
    _write(path)
    with h5py.File(path, "a") as file:
        change(file)
    return path


CELL = "layers/bidirectional/forward_layer/cell/vars"


def _replaced(file: Any, make: Callable[[Any], None]) -> None:
    del file[f"{CELL}/0"]
    make(file)


HDF5_TRICKS: list[tuple[Callable[[Any], None], str]] = [
    (lambda f: f.__setitem__(f"{CELL}/0", h5py.ExternalLink("/etc/hostname", "/x")), "leads out of its place"),
    (lambda f: f.__setitem__(f"{CELL}/0", h5py.SoftLink("/layers")), "leads out of its place"),
    (
        lambda f: f.create_dataset(f"{CELL}/0", (3, 8), "f4", external=[("/etc/passwd", 0, 96)]),
        "its values are in another file",
    ),
    (
        lambda f: f.create_dataset(f"{CELL}/0", (1 << 20, 1 << 20), "f4", chunks=(64, 64)),
        "declares 4398046511104 bytes",
    ),
    (lambda f: f.create_dataset(f"{CELL}/0", (3, 8), "i4"), "expected floating point, got dtype int32"),
    (
        lambda f: f.create_dataset(f"{CELL}/0", data=np.full((3, 8), np.nan, "f4")),
        "kernel: holds NaN or infinite values",
    ),
    (lambda f: f.create_dataset(f"{CELL}/0", data=np.zeros((3, 9), "f4")), r"kernel: expected shapes \(I, 8\)"),
    (lambda f: f.create_group(f"{CELL}/0"), "expected a data set"),
    (lambda f: None, "expected a data set, got None"),
]


@pytest.mark.parametrize(("make", "message"), HDF5_TRICKS)
def test_hdf5_that_leads_away_or_declares_too_much(make: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = _with_weights(tmp_path / "m.weights.h5", lambda file: _replaced(file, make))
    with pytest.raises(io.WeightsError, match=rf"m.weights.h5: .*{message}"):
        io.load_keras(path)


def test_hdf5_virtual_data(tmp_path: Path) -> None:
    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((3, 8), "f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3, 8))
        file.create_virtual_dataset(f"{CELL}/0", layout)

    path = _with_weights(tmp_path / "m.weights.h5", lambda file: _replaced(file, virtual))
    with pytest.raises(io.WeightsError, match="its values are in another file"):
        io.load_keras(path)


def test_hdf5_ring_ends(tmp_path: Path) -> None:
    path = _with_weights(tmp_path / "m.weights.h5", lambda file: file["layers"].__setitem__("again", file["layers"]))
    assert list(io.load_keras(path)) == ["bidirectional"]


def test_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(100 << 20))
    with pytest.raises(io.WeightsError, match=r"m.keras: model.weights.h5: declares 104857600 bytes in an archive of"):
        io.load_keras(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(io.WeightsError, match=r"expected model.weights.h5 in the archive, got \['config.json'\]"):
        io.load_keras(path)


def test_safetensors_that_declare_too_much(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = b'{"weight_ih_l0":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(io.WeightsError, match=r"m.safetensors: expected a whole safetensors file"):
        io.load_safetensors(path)


def test_onnx_tensors_that_declare_too_much(tmp_path: Path) -> None:
    _write(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".W"):
            tensor.dims[:] = [1 << 20, 1 << 20, 1 << 10]
    with pytest.raises(io.WeightsError, match=r"model: tensor 'lstm_l0.W': expected its values"):
        io.onnx_layers(model)


@pytest.mark.parametrize(("module", "extra"), [("onnx", "onnx"), ("h5py", "keras"), ("jax", "jax"), ("torch", "torch")])
def test_a_missing_library_names_its_extra(module: str, extra: str, tmp_path: Path) -> None:
    uses = {
        "onnx": "gpulstm.io.load_onnx('m.onnx')",
        "h5py": "gpulstm.io.load_keras('m.keras')",
        "jax": "import gpulstm.jax",
        "torch": "gpulstm.io.save_torch(gpulstm.LSTM(2, 2))",
    }
    code = f"import sys; sys.modules[{module!r}] = None; import gpulstm\n{uses[module]}"
    result = _python(code)
    assert result.returncode == 1
    assert (
        f"ImportError: {module} is needed here and not installed: python -m pip install 'gpulstm[{extra}]'"
        in result.stderr
    )


def test_importing_gpulstm_imports_none_of_them() -> None:
    names = ("onnx", "h5py", "jax", "torch", "keras", "numba", "google")
    result = _python(f"import sys, gpulstm; print([name for name in {names} if name in sys.modules])")
    assert result.stdout.strip() == "[]"


def _python(code: str) -> Any:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
