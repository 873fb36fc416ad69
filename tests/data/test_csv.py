"""CSV files of images: their columns, splits in words, labels, files elsewhere, mistakes."""

import re
import shutil
from collections import deque
from pathlib import Path

import pytest
from helpers.image_folders import (
    SPLIT_TABLE,
    all_samples,
    draw_class_folders,
    draw_image,
    open_error,
    relative_paths,
    write_image_table,
)

from minidpt.data.datasets import open_dataset
from minidpt.data.naming import read_rows
from minidpt.data.samples import ReadOptions
from minidpt.data.splits import write_split
from minidpt.support import files


def test_csv_with_a_split_is_kept(tmp_path):
    dataset = open_dataset(write_image_table(tmp_path, SPLIT_TABLE))
    assert dataset.name == "birds" and dataset.classnames == ["owl", "sea horse"]
    assert dataset.root == tmp_path / "pictures"  # results may lie beside the file
    assert [(Path(p).name, n, c) for p, n, c in dataset.train] == [
        ("a.png", 1, "sea horse"),
        ("b.png", 0, "owl"),
    ]
    assert relative_paths(dataset.val, tmp_path) == ["pictures/c.png"]
    assert sorted(relative_paths(dataset.test, tmp_path)) == ["pictures/d.png", "pictures/e.png"]
    assert dataset.source == "birds: 2 classes, birds.csv, 2/1/2 images (train/val/test)"


@pytest.mark.parametrize(
    "text",
    [
        "pictures/a.png,owl,train\npictures/b.png,cat,train\npictures/c.png,cat,test",
        "image;id;class;part\npictures/a.png;1;owl;TRAIN\n\npictures/b.png;2;cat;training\n"
        "pictures/c.png;3;cat;Testing\n",
        "\ufeffLabel,Split,Filename\r\nowl,train,pictures/a.png\r\ncat,train,pictures/b.png\r\n"
        "cat,validation,pictures/c.png\r\n",  # no test: val is the test
        'split\tlabel\tpath\ntrain\towl\t"pictures/a.png"\ntrain\tcat\tpictures/b.png\n'
        "dev\tcat\tpictures/c.png",
    ],
    ids=["no header", "semicolons", "Windows", "tabs"],
)
def test_csv_dialects(tmp_path, text):
    dataset = open_dataset(write_image_table(tmp_path, text))
    assert dataset.classnames == ["cat", "owl"]
    assert sorted(relative_paths(dataset.train, tmp_path)) == ["pictures/a.png", "pictures/b.png"]
    assert relative_paths(dataset.test, tmp_path) == ["pictures/c.png"] and dataset.val == []


@pytest.mark.parametrize(
    "header",
    ["image,label(s)", "img,lbl", "filename,class", "Image Path,Class_Name", "files,labels"],
)
def test_csv_headers_that_people_write_are_known(tmp_path, header):
    rows = "".join(f"pictures/{letter}.png,{'ab'[n % 2]},,\n" for n, letter in enumerate("abcdef"))
    text = f"{header}\n{rows}"  # empty cells more: no loss
    dataset = open_dataset(write_image_table(tmp_path, text))
    assert dataset.classnames == ["a", "b"] and len(all_samples(dataset)) == 6
    assert open_dataset(write_image_table(tmp_path, text.replace("\n", "\r"))) == dataset


def test_images_that_a_csv_misses_are_counted_up_to_a_thousand(tmp_path):
    rows = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(1500))
    with pytest.raises(FileNotFoundError, match="line 1: .* 1000 or more missing, the first"):
        open_dataset(write_image_table(tmp_path, rows))


def test_a_csv_may_be_as_long_as_imagenet_s_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_IMAGES", 2000)  # for 2 million; ImageNet has 1.3
    path = write_image_table(tmp_path, "path,label,a,b,c,d,e,f\n" + "a.png,owl,,,,,,\n" * 1300)
    assert sum(len(row) == 8 for _, row in read_rows(path, "birds")) == 1301
    path = write_image_table(tmp_path, "a.png,owl\n" * 2001)
    with pytest.raises(ValueError, match="^birds: expected at most 2,000 rows.* split it"):
        deque(read_rows(path, "birds"), maxlen=0)
    with pytest.raises(ValueError, match="at most 40,000 entries.* split it"):
        open_dataset(write_image_table(tmp_path, "," * 40_001))


def test_a_quoted_cell_keeps_its_comma_and_turns_line_ends_to_spaces(tmp_path):
    rows = 'pictures/a.png,"crane, bird"\npictures/b.png,"sea\nhorse"\n'
    rows += rows.replace("a.p", "c.p").replace("b.p", "d.p")
    dataset = open_dataset(write_image_table(tmp_path, rows))
    assert dataset.classnames == ["crane, bird", "sea horse"]


def test_labels_that_are_no_names_are_said(tmp_path):
    rows = "".join(f"pictures/{letter}.png,{n // 2}\n" for n, letter in enumerate("abcdef"))
    (note,) = open_dataset(write_image_table(tmp_path, rows)).notes
    assert "numbers as class names" in note and "--classnames" in note
    (tmp_path / "names.txt").write_text("0 ox\n1 owl\n2 gnu\n")
    named = open_dataset(write_image_table(tmp_path, rows), classnames=tmp_path / "names.txt")
    assert named.classnames == ["ox", "owl", "gnu"] and named.notes == ()


@pytest.mark.parametrize("split", ["test", "val"])
def test_csv_of_test_rows_alone_is_a_test_set(tmp_path, split):
    text = f"path,label,split\npictures/a.png,owl,{split}\npictures/b.png,cat,{split}\n"
    dataset = open_dataset(write_image_table(tmp_path, text))
    assert dataset.classnames == ["cat", "owl"] and dataset.train == dataset.val == []
    assert relative_paths(dataset.test, tmp_path) == ["pictures/a.png", "pictures/b.png"]


def test_csv_takes_absolute_paths_and_numbers_as_labels(tmp_path):
    image = draw_image(tmp_path / "elsewhere" / "x,1.png")
    rows = f'path,label\n"{image}",10\npictures/a.png,9\npictures/b.png,9\npictures/c.png,10'
    dataset = open_dataset(write_image_table(tmp_path / "data", rows))
    assert dataset.classnames == ["9", "10"]
    assert str(image) in [item.path for item in all_samples(dataset)]


def test_folder_with_labels_csv_is_read_by_it(tmp_path):
    draw_class_folders(tmp_path, {"x": 2, "y": 2})  # would be classes
    dataset = open_dataset(write_image_table(tmp_path, SPLIT_TABLE, "labels.csv").parent)
    assert dataset.classnames == ["owl", "sea horse"] and dataset.name == tmp_path.name


def test_csv_is_the_same_however_its_path_is_spelt(tmp_path, monkeypatch):
    absolute = open_dataset(write_image_table(tmp_path / "below", SPLIT_TABLE))
    monkeypatch.chdir(tmp_path)
    relative = open_dataset("below/birds.csv")
    assert relative.fingerprint() == absolute.fingerprint()
    assert relative.train == absolute.train


def test_csv_of_a_known_data_set_has_its_names_and_template(tmp_path):
    text = SPLIT_TABLE.replace("sea_horse", "SeaLake").replace("owl", "River")
    dataset = open_dataset(write_image_table(tmp_path, text), "eurosat")
    assert dataset.name == "EuroSAT" and dataset.classnames == ["River", "Sea or Lake"]
    assert dataset.template == "a centered satellite photo of {}."


ROW = SPLIT_TABLE.encode()  # and one more


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROW + b"pictures/f.png,owl", r"line 7: expected path, label, train, val .*\(2 cells"),
        (ROW + b"pictures/f.png,owl,later", "line 7: .* train, val or test, got .*later"),
        (ROW + b"\n\npictures/f.png,,test", "line 9: expected path, label"),
        (ROW + b",owl,test", "line 7: expected path, label"),
        (ROW + b"pictures/b.png,cat,test", r"line 7: .* pictures/b.png again \(line 3\)"),
        (ROW + b"pictures/g.png,owl,test", r"line 7: .* got 1 missing, the first .*s/g.png: fix"),
        (ROW + b"pictures/f.png,cat,test", "expected only classes of train, got 'cat' in test"),
        (ROW + b'"pictures/f.png,cat,test', "line 7: expected CSV, got"),
        (ROW + b"pictures/\xe9.png,owl,test", "line 7: expected UTF-8, got .* 0xe9"),
        (ROW + b"pictures/f.png,crane, bird,test", r"line 7: .*\(4 cells for 3 columns\)"),
        (ROW + b'pictures/f.png,"' + b"x" * 501 + b'",train', "a class's name, up to 500 bytes"),
        (ROW + b"pictures/f.png,a\x1b[31m,train", r"a class's name, .* got 'a\\x1b\[31m'"),
        (ROW + b"pictures/f\0.png,owl,test", r"line 7: "),
        (ROW + b"pictures,owl,test", r"line 7: .* got 1 missing.*pictures \(which is no reg"),
        ("", "line 1: expected a header path,label.*, got an empty file"),
        ("file,species\npictures/a.png,owl", "line 1: expected a header .*, got file,species"),
        ("owl,pictures/a.png\n", "line 1: expected a header .*, got owl,pictures/a.png"),
        ("pictures/a.png\n", "line 1: expected a header"),
        ("pictures/a.png,ox,train,x\n", "line 1: expected a header"),
        ("path,label\n", "expected 2 to 25,000 labels, got 0"),
        ("pictures/a.png,owl\npictures/b.png,owl", "expected 2 to 25,000 labels, got 1"),
        ("path,label,split\npictures/a.png,owl,train\npictures/b.png,ox,train", "test, got none"),
        ("pictures/a.png,ox\npictures/b.png,crane, bird", "line 2: .*3 cells for 2 columns"),
        ("pictures/a.png,ox\npictures/b.png", "line 2: expected path, label, got pictures/b"),
        ("id,path,label\n1,pictures/a.png", "line 2: expected path, label, got 1,pictures"),
        (SPLIT_TABLE.encode("utf-16"), "line 1: expected UTF-8, got the byte 0xff"),
    ],
)
def test_csv_mistakes_name_the_line(tmp_path, text, message):
    path = write_image_table(tmp_path, text)
    assert re.search(message, open_error(path))


# ---- columns of any name, splits in words

LETTERS = "abcdefgh"


def table(folder: Path, header: str, cells=("",), labels=("owl", "owl", "cat", "cat")):
    """Write l.csv of a.png to h.png beside them; labels and cells of further columns go round."""
    rows = [header]
    for number, letter in enumerate(LETTERS):
        (folder / f"{letter}.png").touch()
        label = f'"{labels[number % len(labels)]}"'
        rows.append(",".join([f"{letter}.png", label, cells[number % len(cells)]]))
    (folder / "l.csv").write_text("\n".join(rows))
    return folder / "l.csv"


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
        ("image_id", ["1", "2"]),  # beside a column of paths
        ("filename", ["1", "2"]),
        ("class", ["1", "2"]),
    ],
)
def test_a_column_that_is_no_split_is_named_as_unread(tmp_path, column, cells):
    dataset = open_dataset(table(tmp_path, f"path,label,{column}", cells))
    assert dataset.notes == (f"columns not read: {column}",)
    assert "drawn 50/20/30 %" in dataset.source


def test_of_two_columns_of_splits_the_named_one_is_read(tmp_path):
    cells = ["train,test", "test,train"]
    dataset = open_dataset(table(tmp_path, "path,label,phase,split", cells))
    assert (letters(dataset.train), letters(dataset.test)) == ("bdfh", "aceg")
    assert dataset.notes == ("columns not read: phase",)
    path = table(tmp_path, "path,label,phase,usage", cells)
    with pytest.raises(ValueError, match="got phase and usage: pass --columns split=phase"):
        open_dataset(path)
    dataset = open_dataset(path, read=ReadOptions(columns="split=usage"))
    assert letters(dataset.train) == "bdfh" and dataset.notes[0] == "columns not read: phase"


@pytest.mark.parametrize(
    ("column", "cell"), [("set", "A"), ("split", "0"), ("phase", "holdouts"), ("phase", "extra")]
)
def test_a_cell_that_names_no_split_is_an_error_with_its_line(tmp_path, column, cell):
    path = table(tmp_path, f"path,label,{column}", ["train", "test", cell])
    message = f"line 4: expected train, val or test, got '{cell}' in the column '{column}'"
    with pytest.raises(ValueError, match=message):
        open_dataset(path)


def test_columns_are_named_by_hand(tmp_path):
    path = table(tmp_path, "foto,Art,x,label,image", ["train,1,q", "test,2,q"])
    dataset = open_dataset(path, read=ReadOptions(columns="image=foto,label=Art,split=x"))
    assert dataset.classnames == ["cat", "owl"] and letters(dataset.train) == "aceg"
    assert dataset.notes[0] == "columns not read: label, image"
    dataset = open_dataset(table(tmp_path, "id,image"), read=ReadOptions(columns="label=image"))
    assert dataset.classnames == ["cat", "owl"]  # its image is no path, then


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ("", "got '', columns path,label"),
        ("foto", "got 'foto'"),
        ("image=foto", "got no column 'foto', columns path,label"),
        ("colour=path", "got 'colour=path'"),
        ("image=path,label", "got 'label'"),
    ],
)
def test_columns_by_hand_that_are_none_are_refused(tmp_path, columns, got):
    path = table(tmp_path, "path,label")
    expected = "--columns: expected image, label or split = a column's name, "
    with pytest.raises(ValueError, match=expected + got):
        open_dataset(path, read=ReadOptions(columns=columns))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"columns": "image=path"}, "expected a CSV file for --columns or --image-root, got cat/"),
        ({"image_root": "x"}, "expected a CSV file for --columns or --image-root, got cat/"),
        ({"folders_are_classes": True}, "expected a folder for --folders-are-classes, got a CSV"),
    ],
)
def test_options_that_are_not_for_such_data_are_refused(tmp_path, options, expected):
    draw_class_folders(tmp_path, {"cat": 2, "owl": 2})
    data = table(tmp_path, "path,label") if "folders_are_classes" in options else tmp_path
    with pytest.raises(ValueError, match=expected):
        open_dataset(data, read=ReadOptions(**options))


# ---- labels


@pytest.mark.parametrize("label", ['[""bird"",""x""]', "['bird', 'x']", "[1]", "[]", '{""a"": 1}'])
def test_a_list_of_labels_in_a_cell_is_an_error(tmp_path, label):
    got = f"line 3: expected a label, got the list {label}".replace('""', '"')
    with pytest.raises(ValueError) as error:
        open_dataset(table(tmp_path, "path,label", labels=["bird", label]))
    assert got in str(error.value)


@pytest.mark.parametrize(
    ("labels", "composed"),
    [
        (["bird", "bird|animal"], True),
        (["bird", "animal; bird"], True),
        (["bird", "bird, big"], True),
        (["cat|animal", "bird|animal"], True),
        (["crane, bird", "machine"], False),
        (["[UNK]", "cat/dog", "red fox"], False),
    ],
)
def test_labels_composed_of_others_are_quoted_with_their_count(tmp_path, labels, composed):
    notes = open_dataset(table(tmp_path, "path,label", labels=labels)).notes
    assert len(notes) == composed
    if composed:
        assert notes[0].startswith("combined labels are separate classes: '")
        assert f"'{labels[1]}' (4 images)" in notes[0]


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["0.0", "1.0", "10", "1"], ["0", "1", "10"]), (["1.0", "1.5"], ["1.0", "1.5"])],
)
def test_integers_that_pandas_wrote_as_floats_are_integers(tmp_path, labels, names):
    assert open_dataset(table(tmp_path, "path,label", labels=labels)).classnames == names


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
    assert dataset.root == tmp_path / "images" and len(all_samples(dataset)) == 8
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
    with pytest.raises(FileNotFoundError, match="line 2: .* there is .*/a.(png|JPG): fix"):
        open_dataset(path)


def test_paths_of_windows_are_found(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    table(tmp_path / "x" / "y", "path,label")
    for end in (".png", ""):
        text = ROWS.replace("\n", "\nx\\y\\").replace(".png", end)
        (tmp_path / "l.csv").write_text(text.rpartition("x")[0])
        dataset = open_dataset(tmp_path / "l.csv")
        assert dataset.root == tmp_path / "x" / "y" and len(all_samples(dataset)) == 8


@pytest.mark.parametrize("text", [ROWS, IDS, ROWS.replace("\n", "\nin/").rsplit("in/", 1)[0]])
def test_missing_images_that_lie_below_are_proposed(tmp_path, text):
    path = moved(tmp_path, text, "tables/all/in" if "in/" in text else "tables/all")
    with pytest.raises(FileNotFoundError, match="8 missing, the first .*there is") as error:
        open_dataset(path)
    first = path.parent / "all" / ("in" if "in/" in text else "") / "a.png"
    assert f"there is {first}: fix the path or --image-root" in str(error.value)
    read = ReadOptions(image_root=str(path.parent / "all"))
    assert len(all_samples(open_dataset(path, read=read))) == 8


def test_metadata_csv_is_read_beside_images_without_class_folders(tmp_path):
    path = table(tmp_path, "file_name,label").rename(tmp_path / "metadata.csv")
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "owl"] and dataset.name == tmp_path.name
    for name in ("ox", "gnu"):
        (tmp_path / name).mkdir()
        table(tmp_path / name, "")
    assert open_dataset(tmp_path).classnames == ["gnu", "ox"]
    shutil.rmtree(tmp_path / "ox")
    path.write_text("file_name,caption\na.png,an owl\n")  # no list of labels
    with pytest.raises(ValueError, match="at least 2 class folders"):
        open_dataset(tmp_path)
