"""Damaged texts and features of all kinds end in a value or in one line.

`benchmarks/fuzz.py` tries more of them.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from minidpt.data.datasets import open_dataset
from minidpt.data.naming import read_classnames
from minidpt.data.samples import SPLITS
from minidpt.data.splits import read_split
from minidpt.runs.config import RunConfig, RunRecord
from minidpt.runs.folders import CONFIG, RECORD, SPLIT, SUMMARY, TRANSFER, RunFolder
from minidpt.runs.tables import write_tables

SPLIT_ROWS = {
    split: [[f"{letter}.png", label, "ab"[label]] for label, letter in enumerate(letters)]
    for split, letters in {"train": "ab", "val": "cd", "test": "ef"}.items()
}
CSV = "path,label,split\na.png,ox,train\nb.png,owl,train\nc.png,ox,test\nd.png,owl,test\n"
TEST = {"zero_shot_accuracy": 50.5, "accuracy": 61, "test_images": 4}
SETTINGS = RunConfig("/d", model="m", template="{}"), RunRecord("c", "d", "cpu", "fp32", True)
RESULT = {"dataset": "pets", "model": "tiny", "method": "dpt", "shots": 2, "seed": 1}
OTHER = {"ants": {**TEST, "tested": "ants", "settings": {"tested by": "my {}."}}}

ODD = [  # in place of an entry
    *(None, True, False, 0, -1, 1.5, 2**63, 10**400, 1e308, "", " ", ".", "..", "../x", "/abs"),
    *("nan", "\0", "a\nb", "\x1b[31m", "\ud800", "\udce9", "{}", "=1+1", "x" * 5000, "\u202e|`"),
    *([], {}, [[]], [None], {"": None}, [["a.png", 0, "a"]], ["a", "a", "a"], [[0], [0]], "a\\b"),
]  # fmt: skip
RAW = [  # in place of some bytes
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n", b'"', b",", b";", b"\t", b"nan"),
    *(b"\\ud800", b'"name":"x","name":"y",', b"a,b,c,d,e\n", b"\xed\xa0\x80", b"="),
    *(b"(9999999999, 2)", b"'", "\u2028".encode(), b" " * 3000, b"|O", b"<f8", b"\x02\x00"),
]  # fmt: skip


def changed(content: object, random: random.Random) -> object:
    """A copy of JSON content in which one entry, anywhere, is another, gone or there twice."""
    if not isinstance(content, (dict, list)) or not content or random.random() < 0.15:
        return random.choice(ODD)
    copy = content.copy()
    key = random.choice(list(copy)) if isinstance(copy, dict) else random.randrange(len(copy))
    how = random.random()
    if how < 0.7:
        copy[key] = changed(copy[key], random)
    elif how < 0.85:
        del copy[key]
    elif isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[str(random.choice(ODD))] = copy[key]
    return copy


def damaged(content: bytes, random: random.Random) -> bytes:
    """Bytes of which a few are other ones, gone, or there twice."""
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        start = random.randrange(len(content) + 1)
        end = min(len(content), start + random.choice((0, 1, 1, 3, 20)))
        twice = content[start:end] * 2
        content = content[:start] + random.choice((*RAW, b"", twice)) + content[end:]
    return content


class Kind(NamedTuple):
    """A file of a kind, whole, and who reads it."""

    file: str
    content: object  # bytes, or what is written as JSON
    reader: Callable


def opened(*arguments: object) -> None:
    """What a data set must be for all that comes after."""
    dataset = open_dataset(*arguments)
    assert len((Path("out") / dataset.name).parts) == 2 and dataset.name not in (".", "..")
    for split in SPLITS:
        for path, label, name in getattr(dataset, split):
            assert Path(path).is_file() and dataset.classnames[label] == name


def kinds(folder: Path) -> list[Kind]:
    """All kinds, in a folder with what else they need."""
    for letter in "abcdef":
        Image.new("RGB", (3, 3)).save(folder / f"{letter}.png")
    described = {"name": "pets", "root": str(folder), "template": "a {}.", "classnames": ["a", "b"]}
    pairs = {"a": "ox", "b": "red owl"}
    food, run = folder / "food-101", RunFolder(folder / "run")
    for name in ("apple_pie/1.jpg", "waffles/1.jpg"):
        (food / "images" / name).parent.mkdir(parents=True)
        (food / "images" / name).write_bytes(b"")
    (food / "meta").mkdir()
    listed = {"apple_pie": ["apple_pie/1"], "waffles": ["waffles/1"]}
    (food / "meta" / "test.json").write_text(json.dumps(listed))
    run.create(*SETTINGS)
    config = {**SETTINGS[0].to_dict(), RECORD: vars(SETTINGS[1])}
    files = {CONFIG: config, SUMMARY: {**RESULT, "tests": {"pets": TEST}}, TRANSFER: OTHER}
    files[SPLIT] = {**described, **SPLIT_ROWS}
    for name, content in files.items():
        run.write_json(name, content)

    def read_run(_: Path) -> None:
        write_tables(run.folder)
        run.is_finished(*SETTINGS, "")

    return [
        Kind("split.json", {**described, **SPLIT_ROWS}, opened),
        Kind("zhou.json", SPLIT_ROWS, lambda path: read_split(path, folder)),
        Kind("labels.csv", CSV.encode(), opened),
        Kind("plain.csv", CSV.partition("\n")[2].replace(",", ";").encode(), opened),
        Kind("names.txt", b"a ox\nb red owl\n", read_classnames),
        Kind("names.csv", b"a,ox\nb,red owl\n", read_classnames),
        Kind("names.json", pairs, lambda path: opened(folder / "split.json", None, 1, path)),
        Kind("food-101/meta/train.json", listed, lambda _: opened(food)),
        *(Kind(f"run/{name}", files[name], read_run) for name in (CONFIG, SUMMARY, TRANSFER)),
    ]


def run(n: int, seed: int) -> list[str]:
    """Reads `n` damaged files. Returns what went wrong: file, what was in it, how it ended."""
    choose, failures = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        every = kinds(Path(folder).resolve())
        for number in range(n):
            kind = every[number % len(every)]
            content = kind.content
            path = Path(folder).resolve() / kind.file
            sound = content if isinstance(content, bytes) else json.dumps(content).encode()
            if not isinstance(content, bytes):
                for _ in range(choose.choice((0, 1, 1, 2))):
                    content = changed(content, choose)
                content = json.dumps(content).encode()
            content = damaged(content, choose) if choose.random() < 0.6 else content
            path.write_bytes(content)
            started = time.process_time()
            try:
                kind.reader(path)
                ended = "a value"
            except (ValueError, OSError) as error:
                ended = str(error)
            except BaseException as error:
                ended = f"{type(error).__name__}\n{error}"
            spent = time.process_time() - started
            if len(ended) > 500 or not ended.isprintable() or spent > 5:
                failures.append(f"{kind.file} {content!r:.2000} {spent:.1f} s: {ended!r:.600}")
            path.write_bytes(sound)
    return failures


def test_damaged_texts_and_features_end_in_a_value_or_one_line():
    assert run(420, seed=0) == []


def test_the_fuzzer_sees_what_a_reader_does_wrong(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "read_split", lambda path, folder: {}["x"])
    failures = run(22, seed=1)
    assert len(failures) == 2 and all("zhou.json" in failure for failure in failures)
