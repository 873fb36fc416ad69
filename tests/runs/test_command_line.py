"""What both scripts share: one line for a mistake, the help, what a terminal is shown."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.image_folders import draw_image
from helpers.run_command import (
    ROOT,
    SCRIPTS,
    SHORT,
    assert_one_line,
    fork_command,
    run_command,
    run_process,
)
from helpers.short_runs import run_checked

import minidpt
from minidpt.runs import command_line, entrypoint

# Bad input


def test_a_mistake_is_one_line_and_status_2_without_a_traceback(tmp_path):
    for script, result in {
        "train.py": run_process(tmp_path, "train.py", "--data", "nowhere"),
        "eval.py": run_command("eval.py", "test", "nowhere"),
    }.items():
        assert_one_line(result, script, "nowhere", "expected")
        assert result.out == ""
    assert list(tmp_path.iterdir()) == []


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "cocoop"], ["cocoop", *minidpt.METHODS]),
        (["--model", "ViT-B/64"], ["ViT-B/64", "ViT-B/32", "ViT-L/14@336px", "tiny"]),
        (["--model", "missing.pt"], ["missing.pt", "or an existing path"]),
        (["--model", "empty.pt"], ["empty.pt", "expected what torch.save writes"]),
        (["--shots", "0"], ["--shots", "at least 1"]),
        (["--shots", "many"], ["--shots", "many"]),
        (["--workers", "-1"], ["--workers", "at least 0"]),
        (["--precision", "fp64"], ["fp64", "fp32", "bf16", "fp16"]),
        pytest.param(["--device", "cuda"], ["got cuda: pass --device cpu"], marks=NO_CUDA),
        (["--device", "cuda:99"], ["got cuda:99: pass --device cpu"]),
        (["--template", "a photo"], ["a photo", "{}"]),
        (["--template", "a {} of {name}"], ["a {} of {name}", "{}"]),
        (["--template", "a {} {"], ["a {} {", "{}"]),
        (["--n-ctx", "77"], ["77 context vectors", "the context or template"]),
        (["--ctx-init", ""], ["ctx_init"]),
        (["--class-token-position", "start"], ["start", "end", "middle", "front"]),
        (["--class-aware-from", "4"], ["class_aware_from", "1 to 3", "4"]),
        (["--alpha", "-1"], ["alpha", "at least 0"]),
        (["--visual-lr", "inf"], ["--visual-lr", "at most", "inf"]),
        (["--text-lr", "nan"], ["--text-lr", "at most", "nan"]),
        (["--alpha", "much"], ["--alpha", "number", "much"]),
        (["--classnames", ""], ["--classnames", "expected a path"]),
        (["--model", ""], ["--model", "expected a path"]),
        (["--shotz", "3"], ["--shotz"]),
        (["--out", "x" * 300], ["--out: expected a shorter path, got one of 300 bytes"]),
        (["--dataset", "Caltech102"], ["Caltech102", "Caltech101"]),
        (["--classes", "old"], ["old", "base"]),
        (["--classes", "base", "--csc"], ["--csc"]),
        (["--shots", "1", "0"], ["--shots", "at least 1"]),
        (["--classnames", "none.txt"], ["none.txt"]),
        (["--image-size", "36"], ["a multiple of 7", "got 36"]),
        (["--seed", str(2**63)], ["--seed", "at most 9,223,372,036,854,775,807"]),
        (["--n-visual", "9" * 5000], ["--n-visual", "a whole number"]),
        (["--visual-layers", "5"], ["visual_layers", "1 to"]),
        (["--ctx-init", "word " * 200], ["200 context vectors", "77"]),
        (["--ctx-init", "word " * 200, "--seed", "1", "2"], ["200 context vectors", "77"]),
        (["--class-aware-from", "4", "--seed", "1", "2"], ["class_aware_from", "1 to 3"]),
        (["--classnames", "fifo"], ["fifo", "expected a file"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_is_written(
    inputs, options, words
):
    Path("empty.pt").touch()
    os.mkfifo("fifo")
    result = run_command("train.py", *inputs.options, "--out", "run", *SHORT, *options)
    assert_one_line(result, "train.py", *words)
    assert len(result.err) < 600
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["COMMAND"]),
        ("predict RUN", ["IMAGE"]),
        ("predict RUN empty", ["empty: expected a file, got a folder"]),
        ("predict RUN picture.png --top abc", ["--top: expected a whole number, got 'abc'"]),
        ("predict RUN picture.png --csv -", ["--csv: expected a file, got '-'"]),
        ("predict RUN picture.png --csv loop", ["--csv: expected a new file, or", "got loop"]),
        ("predict RUN picture.png --json dangling", ["--json: expected a new file", "dangling"]),
        ("predict RUN picture.png --attention-maps loop", ["loop: expected a new or empty one"]),
        (
            "predict RUN picture.png --attention-maps empty --json empty/a.json",
            ["--json: expected a file outside --attention-maps, got empty/a.json"],
        ),
        ("export RUN loop.pt2", ["loop.pt2: expected a new file"]),
        (f"predict RUN picture.png --json {'x' * 300}", ["--json: expected a shorter path"]),
        ("table empty", ["empty", "finished runs"]),
        ("predict RUN picture.png --top 0", ["--top", "at least 1"]),
        ("predict RUN picture.png --top 1000000000000", ["--top", "at most"]),
        ("predict RUN picture.png --data .", ["--data"]),
        ("predict RUN picture.png --per-class", ["--per-class"]),
        ("test ''", ["RUN", "expected a path"]),
        ("test RUN --model ViT-B/64", ["ViT-B/64", "ViT-B/32"]),
        ("test RUN --template 'a {}.'", ["--template", "--data"]),
        ("test RUN --classnames names.txt", ["--classnames", "--data"]),
        ("test RUN --image-root ''", ["--image-root", "expected a path"]),
        ("test RUN --image-root . --data .", ["--image-root", "expected a CSV file"]),
        ("test RUN --csv out.csv", ["--csv", "--per-class"]),
        ("test RUN RUN --per-class --csv a.csv", ["--csv", "one run and one --dataset"]),
        ("export RUN a.pt2 --csv a.csv", ["--csv"]),
        ("export RUN nodir/a.pt2", ["nodir/a.pt2", "folder that exists"]),
        ("export RUN a.pth", ["a.pth", ".pt2 or .onnx"]),
        ("table", ["DIR"]),
        ("table . --precision bf16", ["--precision"]),
        ("published out", ["required", "--data"]),
        ("test RUN --top-k 3", ["unrecognized", "--top-k"]),
        ("test RUN --image-size 28", ["unrecognized", "--image-size"]),
        ("table RUN --quick-gelu", ["unrecognized", "--quick-gelu"]),
    ],
)
def test_an_option_of_eval_that_makes_no_sense_is_refused(trained, tmp_path, command, words):
    (tmp_path / "empty").mkdir()
    draw_image(tmp_path / "picture.png")
    if "loop" in command or "dangling" in command:
        links = {"loop": "other", "other": "loop", "loop.pt2": "loop", "dangling": "none"}
        for link, target in links.items():
            Path(link).symlink_to(target)
    arguments = [trained if word == "RUN" else word for word in shlex.split(command)]
    assert_one_line(run_command("eval.py", *arguments), "eval.py", *words)


# Help and output


COMMANDS = [["train.py"], *(["eval.py", name] for name in command_line.COMMANDS)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_every_option(command):
    result = run_checked(*command, "--help")
    assert result.out.startswith(f"usage: {' '.join(command)} ")
    options = re.findall(r"^  (--[\w-]+).*(?:\n {10,}.*)*", result.out, re.MULTILINE)
    explained = re.findall(r"^  (--[\w-]+)[^\n]*(?:  +|\n {10,})\w", result.out, re.MULTILINE)
    assert options == explained and bool(options) == (command[-1] != "table")
    assert "default: None" not in result.out


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_two_screens_and_begins_with_what_most_people_need(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_command(script, "--help").out.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 80
    assert sum(line.strip().startswith(f"python {script} ") for line in lines) >= 3
    assert sum(line.strip().startswith("torchrun --nproc_per_node=") for line in lines) == 1
    groups = [line for line in lines if re.fullmatch(r"\w[^.]*:", line) and "usage" not in line]
    known = ["main options:", "data:", "method:", "optimisation:", "output:"]
    assert groups == (known if script == "train.py" else ["commands:"])


def test_a_reader_that_has_had_enough_is_no_error(trained):
    shutil.copytree(trained, "run")
    command = fork_command(ROOT / "eval.py", "table", "run")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_names_cannot_command_the_terminal_or_begin_a_line(trained, inputs):
    shutil.copy(inputs.data / "gnu" / "0.png", "a\x1b[31m\nb: cat 99 %.png")
    result = run_command("eval.py", "predict", trained, "a\x1b[31m\nb: cat 99 %.png")
    assert result.out.startswith(r"a\x1b[31m\nb: cat 99 %.png: ") and result.out.count("\n") == 1
    result = run_command("eval.py", "predict", trained, "gone\x1b[2J\n.png")
    assert_one_line(result, "eval.py", "gone")
    assert "\x1b" not in result.err


# Memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept_and_not_cleared_by_the_system_again(tmp_path):
    code = """if True:
        import resource, torch
        from minidpt.runs.devices import keep_freed_memory

        def pages_of_ten_tensors():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(10_000_000)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        usual = pages_of_ten_tensors()
        keep_freed_memory()
        torch.ones(10_000_000)
        print(usual, pages_of_ten_tensors())
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    usual, with_fewer = map(int, done.stdout.split())
    if usual < 1000:
        pytest.skip("this C library, or huge pages, cost few page faults anyway")
    assert with_fewer < usual / 2  # a few tensors may find their place taken by something small


def test_a_signal_long_after_another_is_heard(monkeypatch):
    before = {number: signal.getsignal(number) for number in entrypoint.SIGNALS}
    monkeypatch.setattr(entrypoint, "SIGNAL_SECONDS", -1)
    try:
        entrypoint.catch_signals()
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            with pytest.raises(KeyboardInterrupt, match=f"^{status}$"):
                signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
