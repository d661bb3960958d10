"""The floors of ``aura``: imports point downwards only, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

AURA = Path(__file__).parents[1] / "aura"

FLOORS = {
    "the method's vocabulary, and what it runs on": (
        "config types files masks geometry targets losses features environment machine serving"
    ),
    "pictures, annotation files, tensors": "drawing formats data",
    "the network; questions from annotations": "model datagen",
    "weights of others; figures; answers to a user": "weights evaluation chat",
    "the run, its plan, the paper's tables": "train plan reproduction",
    "the laptop's benchmark": "mini",
    "a proof on a GPU; benchmarks; what endures kills and bad files": "gpucheck bench torture fuzz",
}
"""From the ground up. A part imports from its own floor and from those below."""

STRANGERS = {
    "formats": {"data"},
    "model": {"datagen"},
    "datagen": {"data", "model"},
    "chat": {"evaluation"},
    "plan": {"train"},
    "reproduction": {"train"},
}
"""Parts that must not know each other, though their floors would allow it."""

FLOOR_OF = {part: level for level, parts in enumerate(FLOORS.values()) for part in parts.split()}


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


def test_loose_modules_stand_on_the_ground_floor():
    loose = {path.stem for path in AURA.glob("*.py")} - {"__init__"}
    assert loose <= set(next(iter(FLOORS.values())).split())


def test_every_folder_says_what_lives_there():
    for folder in {path.parent for path in modules().values()}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), f"{folder} does not introduce itself"


def test_files_hold_one_concept():
    root = AURA.parent
    folders = (AURA, root / "scripts", root / "tests")
    for path in [*root.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]:
        assert len(path.read_text().splitlines()) <= 400, f"{path} is longer than 400 lines: split it"


def test_only_the_engine_knows_deepspeed():
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
