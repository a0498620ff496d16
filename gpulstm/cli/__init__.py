"""The command line: ``gpulstm train``, ``gpulstm data``, ``gpulstm sample``, ``gpulstm convert``, ``gpulstm info``.

Kernels, and what reads and writes files, are imported when they are first used, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from io import TextIOWrapper
from typing import Any

import click

from .. import __version__, dispatch, get_num_threads, tasks
from ..train import checkpoint
from . import errors
from .data import data
from .training import TaskCommands
from .uses import UseCommand


@click.group(cls=errors.Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpulstm")
def cli() -> None:
    """Train, sample and inspect LSTMs.

    Every mistake is answered by one line, "Error: ...", and exit code 1. Ctrl-C ends with 130, SIGTERM with 143;
    training finishes its step and saves first.
    """


@cli.group(cls=TaskCommands)
def train() -> None:
    """Train a model on a task."""


cli.add_command(data)
for name, use in tasks.USES.items():
    cli.add_command(UseCommand(name, use))


@cli.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--layer", help="The layer that is wanted, by its name in an ONNX or Keras file of several.")
@click.option("--prefix", default="", help="What its names begin with in a safetensors file of more.")
@click.option(
    "--cell", help="Its cell, such as rnn_relu, where a safetensors file is mute. [default: lstm, gru or rnn]"
)
@click.option("--batch-first", is_flag=True, default=None, help="It takes (B, T, I), where a safetensors file is mute.")
@click.option("--dtype", help="float32 or float64. [default: that of IN, float32 for half types]")
@click.option("--state", is_flag=True, help="An ONNX model takes initial states.")
@click.option("--lengths", is_flag=True, help="An ONNX model takes the lengths of its sequences.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def convert(source: str, target: str, **options: Any) -> None:
    """Write the weights in IN as OUT, in the format that OUT's name ends in.

    IN is a .safetensors, .onnx, .keras, .weights.h5 or .h5 file, or a checkpoint of gpulstm train text; OUT a
    .safetensors, .onnx, .keras or .weights.h5 file. If anything fails, OUT is as it was.
    """
    from .. import io

    click.echo(io.convert(source, target, **options))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(as_json: bool) -> None:
    """Versions, backends and why one is missing, devices, BLAS, threads."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for key, entry in value.items():
                click.echo(f"  {key:<12} {entry}")
        else:
            click.echo(f"{name + ':':<14} {value}")


def _facts() -> dict[str, Any]:
    import numba
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    backends = {name: reason or "available" for name, reason in dispatch.backends().items()}
    return {
        "versions": checkpoint.versions() | {"numba": numba.__version__},
        "platform": platform.platform(),
        "backends": backends,
        "devices": {"cpu": f"{platform.machine()}, {os.cpu_count()} logical cores"},
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "threads": {"gpulstm": get_num_threads(), "OMP_NUM_THREADS": os.getenv("OMP_NUM_THREADS", "not set")},
    }


def main() -> None:
    """The entry point of the command ``gpulstm``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not where it is captured, or None
            stream.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    errors.watch_callbacks()
    cli()
