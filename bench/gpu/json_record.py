"""The JSON record of a GPU: begun, found again, and turned into the table that selection reads."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import provenance
from ..pool import ROOT
from ..registry import Case
from ..run import Record, load, now
from .grid import CONTENDERS, Contender, Task

SCHEMA = 1
_SOURCES = ("gpulstm", "kernels", "bench")


def new_record(device: dict[str, Any], contenders: Sequence[Contender]) -> Record:
    """All that is known before anything was measured."""
    return {
        "schema": SCHEMA,
        "kind": "gpu",
        "started": now(),
        "finished": None,
        "command": sys.argv,
        "commit": provenance.commit(ROOT),
        "sources": sources(ROOT),
        "machine": provenance.describe(),
        "device": device,
        "tests": None,
        "probes": {},
        "providers": {
            contender.name: {"versions": provenance.versions(contender), "missing": provenance.missing(contender)}
            for contender in contenders
        },
        "cells": [],
    }


def sources(root: Path) -> str:
    """A digest of the sources: a copy of the tree need not be a repository."""
    digest = hashlib.sha256()
    files = (
        path for folder in _SOURCES for path in (root / folder).rglob("*") if path.suffix in (".py", ".cu", ".cuh")
    )
    for path in sorted(files):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def alike(one: Record, other: Record) -> bool:
    """Whether two records are about the same GPU and the same sources, so that their figures belong together."""
    return all(one.get(key) == other.get(key) for key in ("kind", "sources", "device"))


def unfinished(folder: Path, record: Record) -> tuple[Path, Record] | None:
    """The newest record in ``folder`` that a run like ``record``'s was cut in: same GPU, sources and contenders."""
    for path in sorted(folder.glob("gpu-*.json"), reverse=True):
        try:
            found = load(path)
        except ValueError:
            continue  # a table for selection, or some other file
        same = alike(found, record) and list(found["providers"]) == list(record["providers"])
        if same and not found["finished"]:
            return path, found
    return None


def key(cell: Record) -> tuple[Any, ...]:
    """What a cell of the record is about."""
    return Case(**cell["case"]), cell["mode"], cell["provider"]


def key_of(task: Task) -> tuple[Any, ...]:
    case, mode, contender = task
    return case, mode, contender.name


def measured_table(record: Record) -> dict[str, Any]:
    """What ``gpulstm_kernels/cuda/measured.py`` reads: microseconds a step of each walk and pass.

    Backward is what training takes longer than inference: all that a walk adds to be able to go back, and going.
    """
    medians = {
        key(cell): cell["seconds"]["median"] / cell["case"]["steps"] * 1e6
        for cell in record["cells"]
        if cell["seconds"] and CONTENDERS[cell["provider"]].backend == "cupy"
    }
    entries = []
    for (case, mode, provider), figure in medians.items():
        backward = mode == "training"
        forward = medians.get((case, "inference", provider))
        if backward and (forward is None or figure <= forward):
            continue
        entries.append(
            {
                "dtype": case.dtype,
                "cell": "lstm",
                "directions": 1,
                "hidden": case.hidden,
                "batch": case.batch,
                "backward": backward,
                "walk": CONTENDERS[provider].walk,
                "us": figure - forward if backward and forward else figure,
            }
        )
    return {"device": record["device"]["name"], "entries": entries}
