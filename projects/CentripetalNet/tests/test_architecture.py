"""The rooms of the package and who may import whom."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import PROJECT

PACKAGE = PROJECT / "centripetalnet"
# Each room may import those before it, as docs/architecture.md draws them.
ROOMS = [
    {"structures", "config", "io", "layers"},
    {"data", "visualization"},
    {"modeling"},
    {"checkpoint", "explain", "export"},
    {"predictor", "engine", "report"},
    {"commands", "__init__"},
]


def imports_of(tree):
    """The import statements that run when a module is imported, and those for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            yield node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports_of(node)


def file_of(name):
    """The file of a module of the package, or None."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((x for x in candidates if x.is_file()), None)


def imported_by(path):
    """The files of the package that a module imports."""
    parents = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in imports_of(ast.parse(path.read_text())):
        start = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
        module = ".".join(filter(None, (start, node.module)))
        if module.split(".")[0] == PACKAGE.name:
            for alias in node.names:
                # A name is a module of its own or something in the module.
                yield file_of(f"{module}.{alias.name}") or file_of(module)


def import_graph():
    return {path: set(imported_by(path)) - {path} for path in PACKAGE.rglob("*.py")}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def test_rooms_import_only_the_rooms_below_them():
    level = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    upwards = defaultdict(set)
    for path, targets in import_graph().items():
        for target in targets:
            if room_of(path) != room_of(target) and level[room_of(target)] >= level[room_of(path)]:
                upwards[str(path.relative_to(PACKAGE))].add(str(target.relative_to(PACKAGE)))
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    order = list(TopologicalSorter(import_graph()).static_order())

    assert PACKAGE / "modeling" / "meta_arch.py" in order
