"""Imports inside ``aura`` point downwards only, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

AURA = Path(__file__).parents[1] / "aura"

FLOORS = [
    {"config", "types", "files", "masks", "targets", "geometry", "ranks", "typesetting"},
    {"losses", "metrics", "visualize", "data"},
    {"model", "datagen"},
    {"readout", "inference", "plan"},
    {"evaluation", "gallery", "scoring", "report", "tables", "terminal", "web", "reproduction"},
    {"train"},
]
FLOOR_OF = {part: level for level, parts in enumerate(FLOORS) for part in parts}
STRANGERS = {"datagen": {"model"}, "model": {"datagen"}}


def imports_of(path: Path) -> set[str]:
    """The dotted ``aura`` modules that a file imports, in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: write absolute imports"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("aura.")}


def modules() -> dict[str, Path]:
    return {
        "aura." + ".".join(path.relative_to(AURA).with_suffix("").parts): path
        for path in AURA.rglob("*.py")
        if path.name != "__init__.py"
    }


def test_every_part_has_a_floor_and_imports_point_downwards():
    for name, path in modules().items():
        part = name.split(".")[1]
        assert part in FLOOR_OF, f"{name} stands on no floor: add it to FLOORS"
        for imported in imports_of(path):
            other = imported.split(".")[1]
            assert FLOOR_OF[other] <= FLOOR_OF[part], f"{name} imports {imported}, which stands above it"
            assert other not in STRANGERS.get(part, set()), f"{name} must not know {imported}"


def test_there_are_no_circles():
    known = modules()
    graph = {name: imports_of(path) & known.keys() - {name} for name, path in known.items()}
    list(TopologicalSorter(graph).static_order())


def test_the_ground_floor_data_and_questions_need_no_deepspeed_and_only_the_engine_knows_it():
    users = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(
            (module or "").split(".")[0] == "deepspeed"
            for module in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module])
        )
    }
    assert users <= {"aura.train.engine"}
