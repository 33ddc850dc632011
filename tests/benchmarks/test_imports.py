"""The scripts' imports have no circle, as the package's have none."""

from pathlib import Path

from tests.test_architecture import cycle, imports

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def test_there_is_no_cycle() -> None:
    paths = {}
    for path in SCRIPTS.rglob("*.py"):
        parts = path.relative_to(SCRIPTS).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {name: set(imports(path.read_text(), name, set(paths))) for name, path in paths.items()}
    assert graph["targets"] == {"checkouts", "measuring"} and "cases.family" in graph["cases.refresh"]
    assert cycle(graph) is None
