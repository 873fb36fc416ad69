"""Mutation tests: change the package by one thing at a time and see whether a test fails.

    python tests/benchmarks/mutants.py                                   # 300 drawn of all
    python tests/benchmarks/mutants.py --files train.py minidpt/losses.py --count 50
    python tests/benchmarks/mutants.py --listed                          # those of mutants.json

A mutant compares, calculates or decides otherwise, has another constant, leaves a call out or swaps
two arguments. Each is written into a copy of the checkout, the tests that are nearest to its module
(`NEAREST`) run there until one fails, and the file is put back. Prints a line for each, with the
test that failed, and a table. If the tests do not end in time, that is no death: the machine may be
slow. mutants.json has mutants written by hand, [file, old, new], and `equivalent` ones, [file, old,
new, why], that compute the same by another way and are not counted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
ROOT = Path(__file__).resolve().parents[2]
LISTED = Path(__file__).with_name("mutants.json")
NEAREST = {  # by the beginning of a path, the longest counts: tests, the quickest first
    "train.py": "runs/test_wiring.py runs/test_train.py runs/test_resume.py runs/test_sweeps.py "
    "runs/test_eval_elsewhere.py runs/test_run_data.py runs/test_transfer.py test_training.py "
    "runs/test_processes.py",
    "eval.py": "runs/test_eval.py runs/test_classify.py runs/test_transfer.py "
    "runs/test_command_line.py runs/test_checkpoint_options.py runs/test_report.py",
    "minidpt/model.py": "test_model.py test_methods.py test_golden.py test_inference.py "
    "test_distributed.py runs/test_eval_elsewhere.py",
    "minidpt/prompts.py": "test_prompts.py test_model.py test_golden.py test_methods.py",
    "minidpt/losses.py": "test_training.py test_model.py test_golden.py test_methods.py "
    "test_distributed.py",
    "minidpt/training.py": "test_training.py runs/test_train.py runs/test_faults.py",
    "minidpt/config.py": "test_model.py runs/test_config.py runs/test_command_line.py",
    "minidpt/inference.py": "test_inference.py runs/test_classify.py",
    "minidpt/maps.py": "test_maps.py runs/test_attention_maps.py",
    "minidpt/exporting.py": "test_exporting.py",
    "minidpt/clip": "clip test_model.py",
    "minidpt/images": "images data/test_batches.py data/test_samples.py",
    "minidpt/data": "data",
    "minidpt/demo": "demo",
    "minidpt/checkpoints": "checkpoints test_inference.py",
    "minidpt/support/distributed.py": "test_distributed.py runs/test_processes.py",
    "minidpt/support": "support data runs/test_run_folders.py runs/test_classify.py",
    "minidpt/runs": "runs",
}
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
}  # fmt: skip


class Mutant(NamedTuple):
    """A change of one place: `old` at this character of the file becomes `new`."""

    file: str
    start: int
    old: str
    new: str
    kind: str


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the kinds of mutants of a node, with what takes its place."""
    changed = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        changed.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield "comparison", changed
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        changed.op = ARITHMETIC[type(node.op)]()
        yield "arithmetic", changed
    elif isinstance(node, ast.BoolOp):
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "condition", changed
    elif isinstance(node, ast.IfExp):
        changed.body, changed.orelse = changed.orelse, changed.body
        yield "condition", changed
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "dropped call", ast.Pass()
    elif isinstance(node, ast.Call) and len(node.args) > 1:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        is_symmetric = name in ("min", "max") or (name == "transpose" and len(node.args) == 2)
        if not is_symmetric and not any(isinstance(each, ast.Starred) for each in node.args[:2]):
            changed.args[:2] = changed.args[1::-1]
            yield "swapped arguments", changed


def mutated_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one whose mutants a test could see: no messages, no annotations."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr | ast.Raise):
                yield child
                yield from mutated_nodes(child)


def generate(file: str) -> list[Mutant]:
    """Return all mutants of a file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    text, mutants = source.encode(), []
    for node in mutated_nodes(ast.parse(source)):
        for kind, changed in changes(node):
            start, end = (
                starts[line - 1] + column
                for line, column in (
                    (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
                )
            )  # fmt: skip
            new = ast.unparse(changed)
            new = new if isinstance(changed, ast.Pass | ast.Constant) else f"({new})"
            mutants.append(Mutant(file, start, text[start:end].decode(), new, kind))
        if isinstance(node, ast.If | ast.While):
            test = node.test
            start = starts[test.lineno - 1] + test.col_offset
            end = starts[test.end_lineno - 1] + test.end_col_offset
            old = text[start:end].decode()
            mutants.append(Mutant(file, start, old, f"not ({old})", "condition"))
    return mutants


def from_list(file: str, old: str, new: str) -> Mutant:
    """Return a mutant that was written by hand. Raises ValueError unless `old` is there once."""
    text = (ROOT / file).read_bytes()
    if text.count(old.encode()) != 1:
        raise ValueError(f"{file}: expected once, got {text.count(old.encode())} times: {old}")
    return Mutant(file, text.index(old.encode()), old, new, "by hand")


def changed_text(mutant: Mutant, text: bytes) -> bytes:
    """Return the text of the file with the mutant."""
    end = mutant.start + len(mutant.old.encode())
    return text[: mutant.start] + mutant.new.encode() + text[end:]


def is_equivalent(mutant: Mutant, equivalent: set[tuple[str, bytes]]) -> bool:
    """Whether the text with the mutant is among those, of pairs of a file and its text."""
    return (mutant.file, changed_text(mutant, (ROOT / mutant.file).read_bytes())) in equivalent


def nearest_tests(file: str) -> list[str]:
    """Return the tests that reach a file, those of its own name first."""
    key = max((key for key in NEAREST if file.startswith(key)), key=len)
    tests = [f"tests/{name}" for name in NEAREST[key].split()]
    alone = sorted((ROOT / "tests").rglob(f"test_{Path(file).stem}.py"))
    alone = [str(each.relative_to(ROOT)) for each in alone]
    return list(dict.fromkeys([*alone, "tests/test_identities.py", *tests]))


def killer(mutant: Mutant, checkout: Path, limit: float) -> str:
    """Run the nearest tests on a mutant in a fork; return which fails, "" if all pass.

    "timeout" if they take longer than `limit` seconds.
    """
    path, failed = checkout / mutant.file, checkout / "failed"
    failed.write_text("")
    original, stat = path.read_bytes(), path.stat()
    path.write_bytes(changed_text(mutant, original))
    try:
        if not (child := os.fork()):
            run_tests(checkout, nearest_tests(mutant.file))
        deadline = time.monotonic() + limit
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "timeout"
            time.sleep(0.05)
        return (failed.read_text() or "import") if ended[1] else ""
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its bytecode is valid again


class FailedTest:
    """A plugin of pytest: writes the name of a test that fails into a file."""

    @staticmethod
    def pytest_runtest_logreport(report):
        if report.failed:
            Path("failed").write_text(report.nodeid)


def run_tests(checkout: Path, tests: list[str], *more: str) -> None:
    """Exit with 0 if the tests pass in a checkout. To be called in a fork."""
    import pytest

    os.setsid()  # with all that the tests start
    os.chdir(checkout)
    if not more:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    sys.path[:1] = [str(checkout)]
    there = [test for test in tests if (checkout / test).exists()]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *more]
    status = pytest.main([*options, *there], plugins=[FailedTest])
    os.killpg(0, signal.SIGKILL) if status and status != 1 else os._exit(int(status != 0))


def main() -> None:
    """Print the mutants that live, and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", nargs="+", help="default: the package and both scripts")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--listed", action="store_true", help="those of mutants.json instead")
    parser.add_argument("--limit", type=float, default=180, help="seconds for the tests of one")
    args = parser.parse_args()
    lists = json.loads(LISTED.read_text(encoding="utf-8"))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    code = [f for f in tracked if f.endswith(".py") and f.startswith(("minidpt/", "train", "eval"))]
    if args.listed:
        mutants = [from_list(*each) for each in lists["listed"]]
        mutants = [each for each in mutants if each.file in (args.files or code)]
    else:
        mutants = [from_list(*each[:3]) for each in lists["equivalent"]]
        equivalent = {(m.file, changed_text(m, (ROOT / m.file).read_bytes())) for m in mutants}
        mutants = [each for file in args.files or code for each in generate(file)]
        mutants = [mutant for mutant in mutants if not is_equivalent(mutant, equivalent)]
        mutants = random.Random(args.seed).sample(mutants, min(args.count, len(mutants)))
    import torch._dynamo  # noqa: F401 (once, for all forks)

    counts = {"died": Counter(), "lives": Counter(), "timeout": Counter()}
    with tempfile.TemporaryDirectory() as folder:
        for file in tracked:
            target = Path(folder, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target)
        if not (child := os.fork()):  # compiles the tests and what they import
            run_tests(Path(folder), ["tests"], "--collect-only")
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("expected tests that can be imported, got an error: run them")
        for mutant in sorted(mutants):
            test = killer(mutant, Path(folder), args.limit)
            outcome = "timeout" if test == "timeout" else "died" if test else "lives"
            counts[outcome][mutant.file] += 1
            line = (ROOT / mutant.file).read_bytes()[: mutant.start].count(b"\n") + 1
            print(f"{outcome}: {mutant.file}:{line} {mutant.kind}: {mutant.old!r} -> "
                  f"{mutant.new!r} {test}", flush=True)  # fmt: skip
    print("\n| file | died | live | timeout |\n|---|---|---|---|")
    for file in sorted({mutant.file for mutant in mutants}):
        print(f"| {file} | {' | '.join(str(each[file]) for each in counts.values())} |")
    print(f"| all | {' | '.join(str(each.total()) for each in counts.values())} |")


if __name__ == "__main__":
    main()
