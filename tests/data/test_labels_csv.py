"""CSV files of images: columns of any name, splits in words, labels, and files elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from minidpt.data.datasets import open_dataset
from minidpt.data.samples import Dataset, ReadOptions
from minidpt.data.splits import write_split

LETTERS = "abcdefgh"


def table(folder: Path, header: str, cells: list[str] | None = None, name: str = "l.csv") -> Path:
    """Write a CSV file of a.png to h.png, of the labels owl and cat, beside them.

    The cells of further columns go round; None for none.
    """
    rows = []
    for number, letter in enumerate(LETTERS):
        (folder / f"{letter}.png").touch()
        more = [] if cells is None else [cells[number % len(cells)]]
        rows.append(",".join([f"{letter}.png", ("owl", "owl", "cat", "cat")[number % 4], *more]))
    (folder / name).write_text("\n".join([header, *rows]))
    return folder / name


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.val), len(dataset.test)


def letters(samples: list) -> str:
    return "".join(sorted(Path(sample.path).stem for sample in samples))


@pytest.mark.parametrize(
    ("column", "cells", "train", "val", "test"),
    [
        ("data set", ["train", "test", "train", "test"], "aceg", "", "bdfh"),
        ("Usage", ["Training", "PublicTest", "Training", "PrivateTest"], "aceg", "bf", "dh"),
        ("usage", ["Training", "PublicTest"], "aceg", "", "bdfh"),
        ("phase", ["TRAIN", "Valid", "Train Set", "TEST"], "aceg", "bf", "dh"),
        ("mode", ["training", "validation"], "aceg", "", "bdfh"),
        ("stage", ["train", "eval"], "aceg", "", "bdfh"),
        ("stage", ["train", "eval", "train", "test"], "aceg", "bf", "dh"),
        ("partition", ["0", "1", "0", "2"], "aceg", "bf", "dh"),
        ("partition", ["0.0", "2.0"], "aceg", "", "bdfh"),
        ("is_test", ["0", "1"], "aceg", "", "bdfh"),
        ("isTest", ["False", "True"], "aceg", "", "bdfh"),
        ("is_train", ["1", "0"], "aceg", "", "bdfh"),
        ("is_training_image", ["yes", "no"], "aceg", "", "bdfh"),
        ("is_valid", ["False", "True"], "aceg", "", "bdfh"),
    ],
)
def test_words_for_splits_are_the_split_under_any_name(tmp_path, column, cells, train, val, test):
    dataset = open_dataset(table(tmp_path, f"path,label,{column}", cells))
    splits = dataset.train, dataset.val, dataset.test
    assert tuple(map(letters, splits)) == (train, val, test)
    assert dataset.notes[-1].startswith(
        f"the split is read from the column '{column}': {cells[0]} is train, "
    )


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("fold", ["train", "test"]),  # of a cross-validation
        ("cv_fold", ["0", "1"]),
        ("phase", ["0", "1"]),
        ("partition", ["0", "1", "2", "3", "4"]),
        ("is_test", ["0", "0"]),
        ("phase", ["train", "train"]),
        ("phase", ["val", "test"]),
        ("comment", ["sharp", "dim"]),
    ],
)
def test_a_column_that_is_no_split_is_named_as_unread(tmp_path, column, cells):
    dataset = open_dataset(table(tmp_path, f"path,label,{column}", cells))
    assert dataset.notes == (f"columns not read: {column}",)
    assert "drawn 50/20/30 %" in dataset.source


def test_a_known_name_wins_over_words_in_another_column(tmp_path):
    path = table(tmp_path, "path,label,phase,split", ["train,test", "test,train"])
    dataset = open_dataset(path)
    assert (letters(dataset.train), letters(dataset.test)) == ("bdfh", "aceg")
    assert dataset.notes == ("columns not read: phase",)


def test_two_columns_of_splits_are_refused_until_one_is_named(tmp_path):
    path = table(tmp_path, "path,label,phase,usage", ["train,test", "test,train"])
    with pytest.raises(ValueError, match="got phase and usage: pass --columns split=phase"):
        open_dataset(path)
    dataset = open_dataset(path, read=ReadOptions(columns="split=usage"))
    assert letters(dataset.train) == "bdfh"
    assert dataset.notes[0] == "columns not read: phase"


@pytest.mark.parametrize(
    ("column", "cell"), [("set", "A"), ("split", "0"), ("phase", "holdouts"), ("phase", "extra")]
)
def test_a_cell_that_names_no_split_is_an_error_with_its_line(tmp_path, column, cell):
    path = table(tmp_path, f"path,label,{column}", ["train", "test", cell])
    message = f"line 4: expected train, val or test, got '{cell}' in the column '{column}'"
    with pytest.raises(ValueError, match=message):
        open_dataset(path)


def test_columns_are_named_by_hand(tmp_path):
    header = "label,Art,image,foto,x"
    rows = [f"1,{'owl' if n % 2 else 'cat'},q,{c}.png,test" for n, c in enumerate(LETTERS)]
    table(tmp_path, "path,label")
    rows = [row.replace("test", "train") if n < 4 else row for n, row in enumerate(rows)]
    (tmp_path / "l.csv").write_text("\n".join([header, *rows]))
    read = ReadOptions(columns="image=foto,label=Art,split=x")
    dataset = open_dataset(tmp_path / "l.csv", read=read)
    assert dataset.classnames == ["cat", "owl"] and letters(dataset.train) == "abcd"
    assert dataset.notes[0] == "columns not read: label, image"


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ("", "got '', columns path,label"),
        ("foto", "got 'foto'"),
        ("image=foto", "got 'image=foto', columns path,label"),
        ("colour=path", "got 'colour=path'"),
        ("image=path,label", "got 'label'"),
    ],
)
def test_columns_by_hand_that_are_none_are_refused(tmp_path, columns, got):
    path = table(tmp_path, "path,label")
    expected = "--columns: expected image, label or split = a column's name, "
    with pytest.raises(ValueError, match=expected + got):
        open_dataset(path, read=ReadOptions(columns=columns))


@pytest.mark.parametrize("options", [{"columns": "image=path"}, {"image_root": "x"}])
def test_options_of_a_csv_are_refused_for_folders(tmp_path, options):
    for name in ("owl", "cat"):
        (tmp_path / name).mkdir()
        table(tmp_path / name, "x").unlink()
    with pytest.raises(ValueError, match="expected a CSV file for --columns or --image-root, got"):
        open_dataset(tmp_path, read=ReadOptions(**options))


# ---- labels


def labelled(folder: Path, labels: list[str]) -> Path:
    path = table(folder, "path,label")
    rows = [f'{c}.png,"{labels[n % len(labels)]}"' for n, c in enumerate(LETTERS)]
    path.write_text("\n".join(["path,label", *rows]))
    return path


@pytest.mark.parametrize("label", ['[""bird"",""x""]', "['bird', 'x']", "[1]", "[]", '{""a"": 1}'])
def test_a_list_of_labels_in_a_cell_is_an_error(tmp_path, label):
    got = f"line 3: expected a label, got the list {label}".replace('""', '"')
    with pytest.raises(ValueError) as error:
        open_dataset(labelled(tmp_path, ["bird", label]))
    assert got in str(error.value)


@pytest.mark.parametrize(
    "labels",
    [
        ["bird", "bird|animal"],
        ["bird", "animal; bird"],
        ["bird", "bird, big"],
        ["cat|animal", "bird|animal"],
    ],
)
def test_labels_composed_of_others_are_quoted_with_their_count(tmp_path, labels):
    (note,) = open_dataset(labelled(tmp_path, labels)).notes
    assert note.startswith("labels composed of others are classes of their own: '")
    assert f"'{labels[1]}' (4 images)" in note


@pytest.mark.parametrize("labels", [["crane, bird", "crane"], ["[UNK]", "cat/dog", "red fox"]])
def test_labels_with_a_comma_or_brackets_are_names(tmp_path, labels):
    labels = ["crane, bird", "machine"] if labels[-1] == "crane" else labels
    assert open_dataset(labelled(tmp_path, labels)).notes == ()


def test_whole_numbers_that_pandas_wrote_as_floats_are_whole(tmp_path):
    dataset = open_dataset(labelled(tmp_path, ["0.0", "1.0", "10", "1"]))
    assert dataset.classnames == ["0", "1", "10"]
    (tmp_path / "2").mkdir()
    assert open_dataset(labelled(tmp_path / "2", ["1.0", "1.5"])).classnames == ["1.0", "1.5"]


# ---- files


def moved(folder: Path, text: str, to: str = "images") -> Path:
    """Write a CSV file whose images lie in another folder."""
    (folder / "tables").mkdir()
    path = table(folder / "tables", "path,label")
    (folder / to).mkdir(parents=True)
    for letter in LETTERS:
        shutil.move(path.parent / f"{letter}.png", folder / to)
    path.write_text(text)
    return path


ROWS = "path,label\n" + "".join(f"{c}.png,{('owl', 'cat')[n % 2]}\n" for n, c in enumerate(LETTERS))
IDS = ROWS.replace("path", "image_id").replace(".png", "")


@pytest.mark.parametrize("text", [ROWS, IDS, IDS.replace("image_id,", "id;").replace(",", ";")])
def test_images_elsewhere_are_read_from_the_image_root(tmp_path, text):
    path = moved(tmp_path, text)
    dataset = open_dataset(path, read=ReadOptions(image_root=str(tmp_path / "images")))
    assert dataset.root == tmp_path / "images" and sum(sizes(dataset)) == 8
    write_split(dataset, tmp_path / "split.json")
    shutil.move(tmp_path / "images", tmp_path / "new")
    again = open_dataset(tmp_path / "split.json", read=ReadOptions(image_root=tmp_path / "new"))
    assert again.fingerprint() == dataset.fingerprint()


def test_an_ending_is_supplied_if_it_alone_fits(tmp_path):
    path = table(tmp_path, "path,label")
    path.write_text(ROWS)
    dataset = open_dataset(path)
    path.write_text(IDS)
    (tmp_path / "a.txt").touch()
    (tmp_path / "b").mkdir()
    assert open_dataset(path) == dataset
    shutil.copy(tmp_path / "a.png", tmp_path / "a.JPG")
    with pytest.raises(FileNotFoundError, match="line 2: .* there is .*/a.(png|JPG): mend"):
        open_dataset(path)


def test_an_id_is_the_path_only_where_no_other_column_is(tmp_path):
    path = table(tmp_path, "path,label,image_id", ["1", "2"])
    dataset = open_dataset(path)
    assert dataset.notes == ("columns not read: image_id",) and sum(sizes(dataset)) == 8


def test_paths_of_windows_are_found(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    table(tmp_path / "x" / "y", "path,label")
    for end in (".png", ""):
        text = ROWS.replace("\n", "\nx\\y\\").replace(".png", end)
        (tmp_path / "l.csv").write_text(text.rpartition("x")[0])
        dataset = open_dataset(tmp_path / "l.csv")
        assert dataset.root == tmp_path / "x" / "y" and sum(sizes(dataset)) == 8


@pytest.mark.parametrize("text", [ROWS, IDS, ROWS.replace("\n", "\nin/").rsplit("in/", 1)[0]])
def test_missing_images_that_lie_below_are_proposed(tmp_path, text):
    path = moved(tmp_path, text, "tables/all/in" if "in/" in text else "tables/all")
    with pytest.raises(FileNotFoundError, match="8 missing, the first .*there is") as error:
        open_dataset(path)
    first = path.parent / "all" / ("in" if "in/" in text else "") / "a.png"
    assert f"there is {first}: mend the path or --image-root" in str(error.value)
    read = ReadOptions(image_root=str(path.parent / "all"))
    assert sum(sizes(open_dataset(path, read=read))) == 8


def test_metadata_csv_is_read_beside_images_without_class_folders(tmp_path):
    dataset = open_dataset(table(tmp_path, "file_name,label", name="metadata.csv").parent)
    assert dataset.classnames == ["cat", "owl"] and dataset.name == tmp_path.name
    for name in ("ox", "gnu"):
        (tmp_path / name).mkdir()
        table(tmp_path / name, "")
    assert open_dataset(tmp_path).classnames == ["gnu", "ox"]


def test_metadata_csv_without_labels_is_no_list(tmp_path):
    table(tmp_path, "file_name,caption", name="metadata.csv")
    with pytest.raises(ValueError, match="expected a folder for each class"):
        open_dataset(tmp_path)
