"""Imports run downwards, in the order that docs/architecture.md shows, and there is no cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pixelcnn_fast"
# From the bottom; parts of one tier do not import each other.
TIERS = [
    {
        "program.steps",
        "errors",
        "files",
        "native",
        "image_forms",
        "signatures",
        "noise",
        "fingerprint",
        "progress",
        "telling",
        "cores",
    },
    {"ops", "pictures"},
    {"nn", "rewriting"},
    {"models"},
    {"checkpoint"},
    {"program"},
    {"heads"},
    {"capture", "passes"},
    {"runtimes"},
    {"compiler", "environment"},
    {"perturbation"},
    {"engine"},
    {"sampler", "receptive_field", "likelihood", "accelerate"},
    {"distributed"},
    {"bench"},
    {"cli"},
    {"__init__"},
    {"__main__"},
]
TIER_OF = {part: tier for tier, parts in enumerate(TIERS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part(module: str) -> str:
    """The station that a module belongs to; the table of steps, on which all others build, is one by itself."""
    _, *names = module.split(".")
    inner = ".".join(names[:2])
    return inner if inner in TIER_OF else (names or ["__init__"])[0]


def imports(source: str, module: str, known: set[str]) -> Iterator[str]:
    """The package's modules that a source imports anywhere: at the top, in functions, under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the order"
            for name in node.names:
                found = f"{node.module}.{name.name}"
                if found in known:
                    yield found
                elif node.module in known:
                    yield node.module


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


GRAPH = {name: set(imports(path.read_text(), name, set(MODULES))) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    tier = TIER_OF[part(module)]
    for other in GRAPH[module]:
        above = TIER_OF[part(other)] >= tier and part(other) != part(module)
        assert not above, f"{module} imports {other}, which is not below it"


def test_every_part_of_the_order_exists() -> None:
    assert TIER_OF.keys() == {part(module) for module in MODULES}


def test_there_is_no_cycle() -> None:
    assert cycle(GRAPH) is None


def test_a_planted_cycle_is_found() -> None:
    planted = {
        "pixelcnn_fast.a": "def f():\n    from pixelcnn_fast.b import g\n",
        "pixelcnn_fast.b": "if TYPE_CHECKING:\n    from pixelcnn_fast import a\n",
    }
    graph = {name: set(imports(source, name, set(planted))) for name, source in planted.items()}
    assert cycle(graph) is not None


SCRIPTS = [path for folder in ("benchmarks", "examples") for path in (PACKAGE.parent / folder).rglob("*.py")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_do_not_import_the_commands(path: Path) -> None:
    found = imports(path.read_text(), path.name, set(MODULES))
    assert not [module for module in found if part(module) in ("cli", "__main__")]
