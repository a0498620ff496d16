"""How the code is built: what imports what, which files share a name, which packages are declared.

Imports are read from the source, those inside of functions and by ``importlib.import_module`` too; what only type
checkers import is left out.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = {"gpulstm": ROOT, "gpulstm_kernels": ROOT / "kernels"}  # packages, and the folders they are in


def _module_name(file: Path, top: Path) -> str:
    parts = file.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(tops: dict[str, Path]) -> dict[str, Path]:
    """Every module of some packages, and its file."""
    return {_module_name(file, top): file for name, top in tops.items() for file in sorted((top / name).rglob("*.py"))}


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module but those that only type checkers read."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for node in tree.orelse:
            yield from _executed(node)
        return
    yield tree
    for node in ast.iter_child_nodes(tree):
        yield from _executed(node)


def _absolute(name: str, level: int, package: str) -> str:
    """The module that ``from <level dots><name> import`` means in a module of ``package``."""
    parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
    return ".".join([*parents, *([name] if name else [])])


def _by_name(call: ast.Call, package: str) -> str | None:
    """The module that ``import_module(<a string>)`` means, with * for what is filled in."""
    if not ast.unparse(call.func).endswith("import_module"):
        return None
    text = call.args[0]
    parts = text.values if isinstance(text, ast.JoinedStr) else [text] if isinstance(text, ast.Constant) else []
    name = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
    return _absolute(name.lstrip("."), len(name) - len(name.lstrip(".")), package) or None


def imported(file: Path, package: str, known: dict[str, Path]) -> set[str]:
    """What a module imports, in dotted names: of ``known`` modules the module itself, of others whatever is written.

    ``from package import name`` is the module of that name where there is one, otherwise the package's ``__init__``.
    That a package runs before its modules does not count, or every package would be a circle.
    """
    found: set[str] = set()
    for node in _executed(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node.module or "", node.level, package)
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else module for name in names}
        elif isinstance(node, ast.Call) and (pattern := _by_name(node, package)):
            found |= set(fnmatch.filter(known, pattern)) or {pattern}
    return found


@functools.cache
def imports_of(*names: str) -> dict[str, set[str]]:
    """What each module of these packages imports."""
    known = modules({name: LIBRARY.get(name, ROOT) for name in names})
    return {
        name: imported(file, name if file.name == "__init__.py" else name.rpartition(".")[0], known)
        for name, file in known.items()
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """A shortest circle through each module that is in one and in none of those found before."""
    found: list[list[str]] = []
    for start in sorted(graph):
        if any(start in circle for circle in found):
            continue
        ways, at = {start: [start]}, [start]
        while at:
            name = at.pop(0)
            if start in graph[name]:
                found.append([*ways[name], start])
                break
            for other in sorted(graph[name] & graph.keys() - ways.keys()):
                ways[other] = [*ways[name], other]
                at.append(other)
    return found


def test_no_circle_of_imports() -> None:
    found = [" -> ".join(circle) for circle in circles(imports_of("gpulstm", "gpulstm_kernels"))]
    assert not found, "\n".join(found)


def test_the_search_for_circles_finds_them() -> None:
    graph = {"a": {"b"}, "b": {"c", "numpy"}, "c": {"b"}, "d": {"d"}, "e": {"a"}}
    assert circles(graph) == [["b", "c", "b"], ["d", "d"]]


def test_how_imports_are_read(tmp_path: Path) -> None:
    source = """
        import numpy as np, p.a
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from . import only_checked
        else:
            from .. import named
        def late(name):
            from . import b, value
            importlib.import_module("torch.nn")
            importlib.import_module(f".{name}.host", __package__)
            importlib.import_module(name)
    """
    file = tmp_path / "module.py"
    file.write_text(textwrap.dedent(source), encoding="utf-8")
    known = dict.fromkeys(["p", "p.q", "p.q.b", "p.q.only_checked", "p.q.step.host", "p.q.grid.host", "p.named"], file)
    found = {"numpy", "p.a", "typing", "p.named", "p.q.b", "p.q", "torch.nn", "p.q.step.host", "p.q.grid.host"}
    assert imported(file, "p.q", known) == found


def test_kernels_know_nothing_of_the_library() -> None:
    for name, others in imports_of("gpulstm", "gpulstm_kernels").items():
        if name.startswith("gpulstm_kernels"):
            assert not [other for other in others if other.split(".")[0] == "gpulstm"], name


# the rooms of gpulstm_kernels.cpu, each of which imports from those before it alone
FLOORS = ["codegen", "tuning", "crew", "packing", "gemm", "walks", "layer", "alignments"]


def test_floors_of_the_cpu_kernels() -> None:
    prefix = "gpulstm_kernels.cpu."

    def floor(name: str) -> int:
        room = name.removeprefix(prefix).split(".")[0]
        return FLOORS.index(room) if name.startswith(prefix) and room in FLOORS else -1

    graph = imports_of("gpulstm_kernels")
    assert {name for name in FLOORS if any(floor(module) == FLOORS.index(name) for module in graph)} == set(FLOORS)
    upwards = [(name, other) for name, others in graph.items() for other in others if floor(other) > floor(name) >= 0]
    assert upwards == []


# --- names of files -----------------------------------------------------------------------------------------------

# Files of one name are parallel parts of one pattern: where they may lie, and what they are.
PARALLEL = {
    r"gpulstm_kernels/(cpu|cuda)/layer\.py": "one layer by the kernels of a family of devices",
    r"gpulstm_kernels/cuda/walks/\w+/(host\.py|kernels\.cu|kernels_numba_twin\.py)": "the parts of a CUDA walk",
    r"gpulstm_kernels/cuda/walks/\w+/staged(\.cu|_host\.py)": "those for cells with stages",
    r"gpulstm_kernels/(cells|cpu/codegen)/activations\.py": "what cells call, and how a CPU computes it",
    r"gpulstm_kernels/cells/\w+\.(py|cuh)": "one file a cell and language",
    r"gpulstm/(data|tasks)/\w+\.py": "a task, and the data that it is for",
    r"(bench/(gpu/)?providers/\w+|gpulstm/jax|gpulstm_kernels/reference)\.py": "a package or backend and what times it",
    r"bench/(gpu/)?(command|plot|problem|report|run|timing|worker)\.py": "the parts of a benchmark: on CPUs, on GPUs",
}
SAME_IN_EVERY_PACKAGE = {"__init__.py", "__main__.py"}


def test_no_two_files_of_one_name() -> None:
    places: dict[str, list[str]] = {}
    for folder in (ROOT / "gpulstm", ROOT / "kernels" / "gpulstm_kernels", ROOT / "bench"):
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".py", ".cu", ".cuh") and file.name not in SAME_IN_EVERY_PACKAGE:
                place = file.relative_to(folder.parent).as_posix()
                pattern = next((pattern for pattern in PARALLEL if re.fullmatch(pattern, place)), place)
                if pattern not in places.setdefault(file.name, []):
                    places[file.name].append(pattern)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


# --- the quick tests ----------------------------------------------------------------------------------------------


def _quick() -> dict[str, str]:
    """QUICK of conftest.py, whose name is no module's: folders below have a conftest.py too."""
    tree = ast.parse((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    values = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node).startswith("QUICK =")
    ]
    found: dict[str, str] = ast.literal_eval(values[0])
    return found


@pytest.mark.parametrize(("name", "pattern"), _quick().items())
def test_patterns_of_quick_tests_match_something(name: str, pattern: str) -> None:
    """Each word of a pattern is written in the file, or in a helper that it imports its parameters from."""
    file = ROOT / "tests" / name
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert any(test.startswith("test_") for test in names)
    helpers = [ROOT / "tests" / f"{other}.py" for other in imported(file, "tests", {})]
    texts = [path.read_text(encoding="utf-8") for path in (file, *filter(Path.is_file, helpers))]
    words = re.findall(r"[a-z][a-z0-9_ ]*", re.sub(r"\\.", "|", pattern))
    assert [word for word in words if not any(word in text for text in texts)] == []


# --- packages -----------------------------------------------------------------------------------------------------

# distributions whose modules have another name; one module may come from several
DISTRIBUTIONS = {"google": ["protobuf"], "cuda": ["cuda-bindings"], "nvidia": ["nvidia-nvjitlink"]}
DISTRIBUTIONS |= {name: ["cupy-cuda12x", "cupy-cuda13x"] for name in ("cupy", "cupy_backends")}
BY_NUMBA = {"llvmlite"}  # in the one version that Numba asks for
# Timed where they are installed: they are in no registry, need a compiler, or have one cell alone.
RIVALS = {"haste_pytorch", "flashrnn", "minGRU_pytorch"}
PLUGINS = {"pytest-xdist"}  # used by being installed


def declared(extras: dict[str, list[str]], *names: str) -> set[str]:
    """The distributions that these extras ask for, by way of others too."""
    found: set[str] = set()
    for requirement in itertools.chain.from_iterable(extras[name] for name in names):
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match is not None, requirement
        name = re.sub(r"[_.]", "-", match[1]).lower()
        found |= declared(extras, *match[2].split(",")) if name == "gpulstm" else {name}
    return found


def distributions(found: Iterable[str]) -> dict[str, list[str]]:
    """Where the packages among these imports come from, but for Python's and this repository's."""
    own = {*LIBRARY, "gpulstm_command", "bench", "tests", *(path.stem for path in (ROOT / "tests").rglob("*"))}
    names = {name.split(".")[0] for name in found} - sys.stdlib_module_names - own
    return {name: DISTRIBUTIONS.get(name, [name.replace("_", "-").lower()]) for name in names}


@pytest.mark.slow
def test_packages_in_use_are_declared_and_declared_ones_in_use() -> None:
    """By the library or one of its extras; by the extras for the benchmark and for tests."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"] | {"": project["dependencies"]}
    graph = imports_of("gpulstm", "gpulstm_kernels", "bench")
    sides = {name: name.split(".")[0] == "bench" for name in graph}
    library, bench = (
        distributions(other for name, others in graph.items() if sides[name] == side for other in others)
        for side in (False, True)
    )
    tests = distributions(
        other for file in sorted((ROOT / "tests").rglob("*.py")) for other in imported(file, "tests", {})
    )

    def undeclared(used: dict[str, list[str]], *names: str) -> set[str]:
        available = declared(extras, "", "cuda12", "cuda13", *names)
        return {name for name, of in used.items() if not available & set(of)}

    assert undeclared(library, "torch", "io", "jax", "tasks") == BY_NUMBA
    assert undeclared(bench, "bench") == RIVALS
    assert undeclared(tests, "test") == set()
    used = set(itertools.chain.from_iterable((library | tests).values()))
    assert declared(extras, "", "test") - used == PLUGINS
