"""Data sets listed in a CSV file: which columns are read, and what is refused."""

from collections import deque
from pathlib import Path

import pytest
from helpers.image_folders import (
    SPLIT_TABLE,
    all_samples,
    draw_class_folders,
    draw_image,
    read_error,
    relative_paths,
    write_image_table,
)

from minidpt.data.datasets import open_dataset
from minidpt.data.naming import read_rows


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


def test_a_csv_may_be_as_long_as_imagenet_s_and_no_longer(tmp_path):
    path = write_image_table(tmp_path, "path,label,a,b,c,d,e,f\n" + "a.png,owl,,,,,,\n" * 1_300_000)
    assert sum(len(row) == 8 for _, row in read_rows(path, "birds")) == 1_300_001
    path = write_image_table(tmp_path, "a.png,owl\n" * 2_000_001)
    with pytest.raises(ValueError, match="^birds: expected at most 2,000,000 rows.* split it"):
        deque(read_rows(path, "birds"), maxlen=0)
    with pytest.raises(ValueError, match="at most 40,000,000 entries.* split it"):
        open_dataset(write_image_table(tmp_path, "," * 40_000_001))


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
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_dataset(path)
    read_error(error, tmp_path)
