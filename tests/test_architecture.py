"""Imports run downwards, in the order that docs/architecture.md shows, and there is no cycle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pixelcnn_fast"
# From the bottom; parts of one tier do not import each other. A folder's part is what is not in a part of its own.
TIERS = [
    {
        *"program.steps errors files native image_forms signatures noise fingerprint progress telling".split(),
        *"cores housekeeping".split(),
    },
    {"ops", "pictures"},
    {"nn", "rewriting"},
    {"models"},
    {"checkpoint"},
    {"program"},
    {"heads"},
    {"user_model"},
    {"capture.record"},
    {"capture.lower"},
    {"capture", "passes"},
    {"refresh"},
    {"check"},
    {"runtimes"},
    {"compiler", "environment"},
    {"engine"},
    {"call"},
    {"sampler", "receptive_field", "likelihood", "accelerate"},
    {"distributed", "web"},
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
    names = module.split(".")[1:] or ["__init__"]
    inner = ".".join(names[:2])
    return inner if inner in TIER_OF else names[0]


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


# Passes that are about one kind of instruction, and so test for its class. All others ask the instruction.
ABOUT_A_KIND = {"capture.lower.tables", "passes.fuse"}


def kinds_of_instruction() -> set[str]:
    tree = ast.parse(MODULES["pixelcnn_fast.program.instructions"].read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def outside_calls(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Call):
            yield from outside_calls(child)


def class_tests_in(source: str) -> int:
    """How many tests of an instruction's class, or of its name, there are in a source."""
    kinds, found = kinds_of_instruction(), 0
    for node in ast.walk(ast.parse(source)):
        is_call = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
        if is_call or isinstance(node, (ast.Compare, ast.MatchClass)):
            inside = list(outside_calls(node))
            found += any(getattr(x, kind, None) in kinds for x in inside for kind in ("id", "attr", "value"))
    return found


def test_passes_ask_instructions_and_do_not_test_for_their_class() -> None:
    in_rewriting = "pixelcnn_fast.rewriting."  # where a convolution is PyTorch's
    sources = {name: path.read_text() for name, path in MODULES.items() if not name.startswith(in_rewriting)}
    found = {name.removeprefix("pixelcnn_fast."): class_tests_in(source) for name, source in sources.items()}
    assert {name for name, count in found.items() if count} == ABOUT_A_KIND
    assert 0 < sum(found.values()) <= 15


def test_a_planted_test_for_a_class_is_counted() -> None:
    planted = [
        "isinstance(i, (instructions.Pointwise, int))",
        "type(i) == Convolution",
        "type(i).__name__ in ('Pointwise',)",
        "match i:\n case FromLevels(): pass",
    ]
    assert [class_tests_in(each) for each in planted] == [1, 1, 1, 1]
