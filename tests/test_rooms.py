"""The rooms of the package: imports only go down, and the method lives without the rooms above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "minidpt"
GROUND = {"files", "progress", "ranks"}
ROOMS = {  # what the modules of a room, or a module of the ground floor, may import
    **dict.fromkeys(GROUND, set()),
    "clip": GROUND - {"ranks"},
    "checkpoints": GROUND - {"ranks"} | {"clip"},
    "data": GROUND | {"clip"},
    "config": {"files"},
    "losses": {"ranks"},
    "prompts": GROUND | {"clip", "config"},
    "inference": GROUND | {"clip", "checkpoints"},
    "model": GROUND | {"clip", "checkpoints", "config", "inference", "losses", "prompts"},
    "maps": GROUND | {"clip", "prompts", "model"},
    "exporting": GROUND | {"clip", "prompts", "model"},
    "training": GROUND | {"clip", "prompts", "model"},
    "__main__": GROUND | {"checkpoints"},
    "runs": GROUND | {"clip", "checkpoints", "data", "config", "prompts", "model", "maps",
                      "inference", "training"},
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Dotted name below the package → file; the rooms' own files of one docstring apart."""
    names = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(name.parts): path for name, path in names.items() if name.name != "__init__"}


def imported(name: str, source: str) -> set[str]:
    """The modules of the package that a module imports, wherever in it, also for types only."""
    found, known = set(), modules()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = name.split(".")[: -node.level]
            target = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            inside = {f"{target}.{alias.name}".strip(".") for alias in node.names} & known.keys()
            found |= inside or ({target} & known.keys())
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            assert not any(n.split(".")[0] == "minidpt" for n in names), "expected relative imports"
    return found


def test_the_imports_of_a_module_are_found():
    source = (
        "from ..files import x\nfrom . import network\nif TYPE_CHECKING:\n from .packing import y"
    )
    assert imported("clip.tokenizer", source) == {"files", "clip.network", "clip.packing"}
    assert imported("model", "from .clip.network import CLIP") == {"clip.network"}
    assert imported("model", "from .checkpoints import reader") == {"checkpoints.reader"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_from_rooms_below_only(name):
    room = name.split(".")[0]
    allowed = ROOMS[room] | ({room} if "." in name else set())
    found = {other.split(".")[0] for other in imported(name, modules()[name].read_text())}
    assert found <= allowed, f"{name} imports from {found - allowed}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imported(name, path.read_text()) for name, path in modules().items()}
    while graph:
        ground = [name for name, below in graph.items() if not below & graph.keys()]
        assert ground, f"a circle among {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in ground}
