"""Class names and templates that the caller gives."""

import pytest
from helpers.image_folders import SPLIT_TABLE, draw_class_folders, write_image_table

from minidpt.data.datasets import open_dataset
from minidpt.data.splits import write_split


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "x1 snowy owl\n\nx3   lynx\nfolder name\n"),
        ("names.csv", "folder,name\nx1,snowy owl\nx3,lynx\n"),
        ("names.json", '{"x1": "snowy owl", "x3": "lynx"}'),
    ],
)
def test_classes_are_renamed_by_a_file(tmp_path, name, text):
    draw_class_folders(tmp_path / "data", {"x1": 3, "x2": 3, "x3": 3})
    (tmp_path / name).write_text(text)
    dataset = open_dataset(tmp_path / "data", classnames=tmp_path / name)
    assert dataset.classnames == ["snowy owl", "x2", "lynx"]
    assert {i.classname for i in dataset.test} == set(dataset.classnames)
    assert dataset.source.endswith(f"2 of 3 class names from {name}")


def test_classes_that_are_named_by_a_file_are_counted_not_the_names(tmp_path):
    draw_class_folders(tmp_path / "data", {"x1": 3, "x2": 3, "x3": 3})
    (tmp_path / "names.txt").write_text("x1 lynx\nowl x2\ndog x3\n")  # x2 and x3 by chance
    dataset = open_dataset(tmp_path / "data", classnames=tmp_path / "names.txt")
    assert dataset.source.endswith("1 of 3 class names from names.txt")


def test_labels_of_a_csv_and_classes_of_a_split_file_are_renamed(tmp_path):
    (tmp_path / "names.txt").write_text("owl snowy owl\n")
    table = write_image_table(tmp_path / "data", SPLIT_TABLE)
    write_split(open_dataset(table), tmp_path / "split.json")
    for path in (table, tmp_path / "split.json"):
        dataset = open_dataset(path, classnames=tmp_path / "names.txt")
        assert dataset.classnames == ["snowy owl", "sea horse"]
        assert {item.classname for item in dataset.test} == set(dataset.classnames)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.txt", "x1 a\nx2\n", "line 2: expected a folder and its name, got .*x2"),
        ("n.txt", "x1 a\nx1 b\n", "line 2: expected one name for 'x1', got a second"),
        ("n.csv", "x1,a,b\n", "line 1: expected a folder and its name"),
        ("n.json", "{\n", "expected JSON, .* line 2"),
        ("n.json", '["a", "b"]', "expected .*folder.*name"),
        ("n.json", '{"x1": 1}', "expected a folder and its name"),
        ("n.json", '{"x1": "a", "x1": "b"}', "expected JSON, got two entries 'x1'"),
        ("n.json", "[" * 100_000, "n.json: expected JSON, got maximum recursion"),
        ("n.json", '{"x1": "\\ud800"}', "a class's name, .*ud800"),
        ("n.txt", "x1 a\x00b\n", "line 1: expected a class's name"),
        ("n.txt", "x1 " + "a" * 501, "line 1: expected a class's name, up to 500 bytes"),
        ("n.txt", "a x1\nb x2\n", r"expected the classes of data \(x1, x2, ...\), got none"),
        ("n.txt", "x1 a\nx2 A\n", "expected different class names, got 'A' for 'x1' and 'x2'"),
    ],
)
def test_mistakes_in_class_names_are_named(tmp_path, name, text, message):
    draw_class_folders(tmp_path / "data", {"x1": 2, "x2": 2})
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(tmp_path / "data", classnames=tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="none.txt: expected a file"):
        open_dataset(tmp_path / "data", classnames=tmp_path / "none.txt")


def test_template_is_the_callers(tmp_path):
    draw_class_folders(tmp_path, {"a": 2, "b": 2})
    assert open_dataset(tmp_path, template="a sketch of {}").template == "a sketch of {}"
    for template in ("no class", "{} and {}", ""):
        with pytest.raises(ValueError, match="template .*expected up to 1000 characters with {}"):
            open_dataset(tmp_path, template=template)
