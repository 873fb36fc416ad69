"""Split files and fingerprints, the few-shot draw, base and new classes."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.image_folders import all_samples, draw_class_folders, relative_paths

from minidpt.data.datasets import folders_of, open_dataset
from minidpt.data.labels_csv import missing_files
from minidpt.data.samples import Dataset, Sample, few_shot, select_classes
from minidpt.data.splits import read_split, split_content, write_split
from minidpt.support import files


def test_split_file_brings_back_the_same_data_set(tmp_path, monkeypatch):
    draw_class_folders(tmp_path / "data", {"a_b": 6, "ünï": 6, os.fsdecode(b"caf\xe9"): 6})
    drawn = few_shot(open_dataset(tmp_path / "data", template="the {}"), 2, seed=1)
    write_split(drawn, tmp_path / "split.json")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", None)  # no folder is listed
        again = open_dataset(tmp_path / "split.json")
    for name in ("name", "classnames", "template", "train", "val", "test"):
        assert getattr(again, name) == getattr(drawn, name), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "split.json"]

    content = json.loads((tmp_path / "split.json").read_text())  # and it is the published format
    assert content["train"][0] == [relative_paths(drawn.train, tmp_path / "data")[0], 0, "a b"]
    assert {"train", "val", "test"} <= set(content)


def test_split_file_works_for_a_data_folder_that_moved(tmp_path):
    draw_class_folders(tmp_path / "data", {"a": 3, "b": 3})
    write_split(open_dataset(tmp_path / "data"), tmp_path / "split.json")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="folder, got .*data, which is missing: pass --"):
        read_split(tmp_path / "split.json")
    moved = read_split(tmp_path / "split.json", tmp_path / "moved")
    assert all(os.path.exists(item.path) for item in all_samples(moved))
    Path(moved.test[0].path).unlink()
    with pytest.raises(FileNotFoundError, match="got 1 missing, the first .*png"):
        read_split(tmp_path / "split.json", tmp_path / "moved")


def test_missing_files_are_found_among_few_and_among_many(tmp_path, monkeypatch):
    draw_class_folders(tmp_path, {"a": 25})
    there = sorted(map(str, (tmp_path / "a").iterdir()))
    (tmp_path / "a" / "link").symlink_to(there[0])
    (tmp_path / "a" / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "a" / "pipe")
    gone = [str(tmp_path / name) for name in ("a/loop", "a/none.png", "a/pipe", "b/none.png")]
    asked, isfile = [], os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or isfile(path))
    link = str(tmp_path / "a" / "link")
    assert missing_files([*there, link, *gone]) == gone and asked == [link, *gone]
    assert missing_files(gone) == gone and missing_files(there) == []


def test_fingerprint_is_that_of_the_lists_wherever_they_lie(tmp_path):
    draw_class_folders(tmp_path / "data", {"a": 4, "b": 4, os.fsdecode(b"caf\xe9"): 4})
    dataset = open_dataset(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert open_dataset(tmp_path / "copy").fingerprint() == dataset.fingerprint()
    same = replace(dataset, name="other", template="my {}.", notes=("a note",), source="other")
    assert same.fingerprint() == dataset.fingerprint()
    first = dataset.test[0]
    others = [
        replace(dataset, classnames=["a", "b", "tea"]),
        replace(dataset, test=dataset.test[1:]),
        replace(dataset, test=dataset.test[1:], val=[first, *dataset.val]),
        replace(dataset, test=[first._replace(label=2), *dataset.test[1:]]),
        replace(dataset, test=[first._replace(path=first.path + "x"), *dataset.test[1:]]),
        replace(dataset, test=dataset.test[::-1]),  # the few-shot draw depends on the order
    ]
    assert len({other.fingerprint() for other in [dataset, *others]}) == 7


def test_folders_are_those_of_images_and_around_class_folders(tmp_path, monkeypatch):
    def listed(*files: str) -> list[Sample]:
        return [Sample(os.path.join(tmp_path, file), 0, "ox") for file in files]

    def folders(dataset: Dataset) -> list[str]:
        return [folder.relative_to(tmp_path).as_posix() for folder in folders_of(dataset)]

    empty = Dataset("made", tmp_path / "lists", ["ox", "gnu"], "{}.", [], [], [], "made")
    made = replace(empty, train=listed("p/ox/1", "p/ox/2", "p/gnu/1"), test=listed("q/r/1", "s/1"))
    assert folders(made) == ["lists", "p", "s", "p/gnu", "p/ox", "q/r"]
    monkeypatch.setenv("HOME", str(tmp_path / "p"))  # not this one, but those below it
    assert folders(made) == ["lists", "s", "p/gnu", "p/ox", "q/r"]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "p")
    named = replace(empty, root=Path("link"), train=[Sample("link/ox/1", 0, "ox")])
    monkeypatch.delenv("HOME")
    assert folders(named) == ["p", "p/ox"]


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        "{}",
        '{"train": [["a.png", 0]]}',
        '{"train": [["a.png", "x", "a"]]}',
        '{"train": [["a.png", 0, "a"], ["b.png", 2, "b"]]}',
        '{"train": [["a.png", 2, "a"]], "classnames": ["a", "b"]}',
        '{"train": [["a.png", Infinity, "a"]]}',
        '{"train": [["a.png", true, "a"]]}',
        '{"train": [["a.png", -1, "a"]]}',
        '{"train": [[5, 0, "a"]]}',
        '{"train": [["a.png", 0, "a"], ["b.png", 0, "b"]]}',  # one label, two names
        '{"train": [["a.png", 0, "a"]], "classnames": ["b"]}',
        '{"train": [["a.png", 0, "a"]], "classnames": "a"}',
        '{"train": [["a.png", 0, "a"]], "root": 5}',
        '{"train": [["a.png", 0, "a"]], "train": []}',
        '{"train": [["a.png", 0, "\\u001b"]]}',
        "[" * 100_000,
        '{"train": [["a.png", 1' + "0" * 30 + ', "a"]]}',
        '{"train": "' + "x" * 100_000 + '"}',
    ],
)
def test_broken_split_files_get_one_line(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ValueError, match=r"s.json.*: expected ") as raised:
        read_split(tmp_path / "s.json", tmp_path)
    assert str(raised.value).isprintable() and len(str(raised.value)) <= 500
    with pytest.raises(FileNotFoundError, match="none.json"):
        read_split(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize("row", ["[],", '["a",0,"b"],'])
def test_a_split_file_may_list_two_million_images_and_no_more(tmp_path, monkeypatch, row):
    monkeypatch.setattr(files, "MAX_IMAGES", 2000)
    separators = row.count(",") + row.count("[")
    path, rows = tmp_path / "s.json", row * (10_000 // separators + 1)
    path.write_text('{"train": [' + rows[:-1] + "]}")
    with pytest.raises(ValueError, match="s.json: expected at most 10,000 entries, got 10,"):
        read_split(path)
    separators = "," * 5 * 1300  # as many as a row and a line for each of ImageNet's have
    path.write_text(json.dumps({"train": [["a", 0, "b"]], "template": separators}))
    assert split_content(path)["train"] == [["a", 0, "b"]]


def split_of(folder: Path, **changes) -> Path:
    """A split file of three drawn classes, with other entries."""
    draw_class_folders(folder, {"a": 1, "b": 1, "c": 1})
    rows = [[f"{name}/image_0001.png", label, name] for label, name in enumerate("abc")]
    (folder / "s.json").write_text(json.dumps({"root": str(folder), "test": rows} | changes))
    return folder / "s.json"


@pytest.mark.parametrize(
    "name",
    ["../X", "/tmp/X", "a/b", "a\\b", ".", "..", " ", "x\0", "x\n", "\x1b[31m", "x" * 181, 5],
)
def test_a_name_that_leads_a_run_out_of_its_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name") as raised:
        read_split(split_of(tmp_path, name=name))
    assert str(raised.value).isprintable() and len(str(raised.value)) <= 500


def test_images_of_a_split_file_may_lie_anywhere_but_are_regular_files(tmp_path):
    draw_class_folders(tmp_path / "far", {"x": 1})
    paths = [str(tmp_path / "far/x/image_0001.png"), "../far/x/image_0001.png", "a/image_0001.png"]
    rows = [[path, label, name] for label, (path, name) in enumerate(zip(paths, "abc"))]
    split = read_split(split_of(tmp_path / "near", test=rows))
    assert all(os.path.samefile(i.path, paths[0]) for i in split.test[:2])
    os.mkfifo(tmp_path / "near" / "pipe")
    for odd in ("pipe", "a", "/dev/null", "a\0"):
        path = tmp_path / "near" / "s.json"
        path.write_text(json.dumps({"root": str(path.parent), "test": [[odd, 0, "a"]]}))
        with pytest.raises(FileNotFoundError, match="1 missing, the first"):
            read_split(path)


def test_two_classes_of_one_name_in_a_split_file_are_said(tmp_path):
    rows = [[f"{file}/image_0001.png", n, name] for n, (file, name) in enumerate(zip("abc", "xxy"))]
    notes = read_split(split_of(tmp_path, test=rows)).notes
    assert notes == ("2 classes are called 'x'",)
    rows = [[f"{file}/image_0001.png", n, "x"] for n, file in enumerate("abc")]
    (tmp_path / "s.json").write_text(json.dumps({"test": rows}))
    with pytest.raises(ValueError, match=r"several names, got \['x', 'x', 'x'\]"):
        read_split(tmp_path / "s.json", tmp_path)


# ---- few shots


def listed(counts: dict[int, int], split: str) -> list[Sample]:
    return [
        Sample(f"{split}/{label}/{number}", label, f"class{label}")
        for label, count in counts.items()
        for number in range(count)
    ]


def made_dataset(train, val, classes=3) -> Dataset:
    names = [f"class{label}" for label in range(classes)]
    test = listed({label: 2 for label in range(classes)}, "test")
    return Dataset(
        "made", Path("."), names, "{}.", listed(train, "train"), listed(val, "val"), test, "made"
    )


def test_few_shots_of_seed_1_are_these():
    # random.Random(1).sample of range(9), then range(7), then range(3) for val
    state = random.getstate()
    drawn = few_shot(made_dataset({1: 9, 0: 7}, {0: 3}, classes=2), 2, seed=1)
    assert random.getstate() == state  # the global generator is left alone
    expected = ["train/1/2", "train/1/1", "train/0/2", "train/0/0"]
    assert [item.path for item in drawn.train] == expected
    assert [item.path for item in drawn.val] == ["val/0/1", "val/0/2"]


def test_fewer_images_than_shots_are_all_used_and_said():
    drawn = few_shot(made_dataset({0: 5, 1: 3, 2: 4}, {0: 2}), 4, seed=0)
    assert [sum(i.label == label for i in drawn.train) for label in range(3)] == [4, 3, 4]
    about = "shots wanted, but these classes have fewer images: "
    assert drawn.notes == (f"4 {about}'class1' 3",)
    (note,) = few_shot(made_dataset(dict.fromkeys(range(5), 1), {}, 5), 4, seed=0).notes
    assert note == f"4 {about}'class0' 1, 'class1' 1, 'class2' 1 and 2 more"
    assert len(drawn.val) == 2 and few_shot(drawn, 4, seed=0).train == drawn.train
    with pytest.raises(ValueError, match="shots: expected at least 1, got 0"):
        few_shot(drawn, 0, seed=0)


# ---- base and new classes


@pytest.mark.parametrize(
    ("classes", "base", "new"),
    [(4, [0, 1], [2, 3]), (5, [0, 1, 2], [3, 4]), (7, [0, 1, 2, 3], [4, 5, 6])],
)
def test_first_half_of_the_labels_rounded_up_is_base(classes, base, new):
    dataset = made_dataset({label: 3 for label in range(classes)}, {0: 1, classes - 1: 2}, classes)
    for which, labels in [("base", base), ("new", new), ("all", base + new)]:
        selected = select_classes(dataset, which)
        assert selected.classnames == [f"class{label}" for label in labels]
        for split in ("train", "val", "test"):
            expected = [
                Sample(path, labels.index(label), name)
                for path, label, name in getattr(dataset, split)
                if label in labels
            ]
            assert getattr(selected, split) == expected
        sizes = "/".join(str(len(selected.splits[split])) for split in ("train", "val", "test"))
        assert selected.template == dataset.template and selected.subset == which
        assert selected.source == f"made; {which}: {len(labels)} classes, {sizes} images"


def test_too_few_classes_and_unknown_words_are_refused():
    dataset = made_dataset({0: 1, 1: 1, 2: 1}, {})
    with pytest.raises(ValueError, match="at least 2 new classes, got 1 of 3: use a data set of"):
        select_classes(dataset, "new")
    with pytest.raises(ValueError, match="expected one of all, base, new, got 'old'"):
        select_classes(dataset, "old")
