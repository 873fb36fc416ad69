"""The rooms of the package: imports only go down, and the method lives without the rooms above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "minidpt"
ORDER = [  # each room imports from those below it only; one line may hold what knows nothing of
    {"runs"},  # each other
    {"demo", "__main__"},
    {"exporting", "maps", "training"},
    {"model"},
    {"inference", "losses", "prompts"},
    {"checkpoints", "config"},
    {"data"},
    {"clip"},
    {"images"},
    {"support"},
]


def modules() -> dict[str, Path]:
    """Dotted name below the package → file; the rooms' own files of one docstring apart."""
    names = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(name.parts): path for name, path in names.items() if name.name != "__init__"}


def imported(name: str, source: str) -> set[str]:
    """The modules of the package that a module imports, wherever in it, also for types only."""
    targets, known = set(), modules()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = name.split(".")[: -node.level]
            target = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            inside = {f"{target}.{alias.name}".strip(".") for alias in node.names} & known.keys()
            targets |= inside or ({target} & known.keys())
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            assert not any(n.split(".")[0] == "minidpt" for n in names), "expected relative imports"
    return targets


def test_the_imports_of_a_module_are_found():
    source = "from ..support.files import x\nfrom . import network\n"
    source += "if TYPE_CHECKING:\n from .packing import y"
    assert imported("clip.tokenizer", source) == {"support.files", "clip.network", "clip.packing"}
    assert imported("model", "from .clip.network import CLIP") == {"clip.network"}
    assert imported("model", "from .checkpoints import prompt_file") == {"checkpoints.prompt_file"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_from_rooms_below_only(name):
    room = name.split(".")[0]
    (level,) = [level for level, rooms in enumerate(ORDER) if room in rooms]
    allowed = set().union(*ORDER[level + 1 :]) | ({room} if "." in name else set())
    used = {other.split(".")[0] for other in imported(name, modules()[name].read_text())}
    assert used <= allowed, f"{name} imports from {used - allowed}"


def test_the_method_stands_without_data_demo_and_runs():
    services = {"data", "demo", "runs"}
    for name in modules().keys() - {"__main__"}:
        if name.split(".")[0] not in services:
            used = {other.split(".")[0] for other in imported(name, modules()[name].read_text())}
            assert not used & services, name
    assert len([name for name in modules() if "." not in name]) <= 9  # beside __init__


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imported(name, path.read_text()) for name, path in modules().items()}
    while graph:
        ground = [name for name, below in graph.items() if not below & graph.keys()]
        assert ground, f"a circle among {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in ground}
