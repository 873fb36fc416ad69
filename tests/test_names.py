"""Rules of the tests: short files, short names of tests, no vague names of variables."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))
VAGUE = set("own said told held one whole kept given found place part what".split())


def bound_names(source: str) -> Iterator[str]:
    """Yield what a module calls its variables, arguments, attributes, functions and classes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def test_names_are_those_that_are_bound():
    source = "import x\ndef f(a, *b):\n    part.c = one = given[0]\n    for d, e in what: pass"
    assert sorted(bound_names(source)) == ["a", "b", "c", "d", "e", "f", "one"]


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("benchmarks/")])
def test_a_file_is_short_and_its_names_say_something(file):
    source = (TESTS / file).read_text(encoding="utf-8")
    names = set(bound_names(source))
    assert not names & VAGUE
    assert source.count("\n") <= 500
    assert [name for name in names if name.startswith("test_") and name.count("_") > 12] == []


def test_no_name_in_the_package_is_vague():
    for path in [*TESTS.parent.glob("*.py"), *TESTS.parent.glob("minidpt/**/*.py")]:
        assert not VAGUE & set(bound_names(path.read_text("utf-8"))), path
