"""`eval.py` as a user runs it: the test of a run, and classes of images."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from statistics import fmean

import pytest
import torch
from helpers.image_folders import draw_image
from helpers.run_command import (
    ROOT,
    SCRIPTS,
    assert_one_line,
    fork_command,
    read_summary,
    run_command,
    save_clip,
)
from helpers.short_runs import (
    CLASSNAMES,
    RunInputs,
    parse_predictions,
    read_csv,
    read_prompts,
    run_checked,
    train,
)
from helpers.tiny_models import DEEP

import minidpt
from minidpt.runs import classify, report
from minidpt.runs.evaluation import describe_metrics

# The test


def test_eval_gives_the_accuracy_of_the_training_to_the_last_digit(trained, tmp_path):
    content = read_summary(trained)
    result = run_checked("eval.py", "test", trained)
    assert result.out == (
        f"dpt accuracy {content['accuracy']:.2f} %, "
        f"zero-shot {content['zero_shot_accuracy']:.2f} % on 12 test images "
        f"({content['model']} on cpu in fp32)\n{describe_metrics(content)}\n"
    )
    assert "." in f"{content['accuracy']}" and content["accuracy"] != content["zero_shot_accuracy"]


def test_eval_tells_how_each_class_fares(trained):
    result = run_checked("eval.py", "test", trained, "--per-class", "--csv", "classes.csv")
    total, mean, *lines = result.out.splitlines()
    matches = [re.fullmatch(r"  (\w.*?) +([\d.]+) %  (\d+) of (\d+).*", line) for line in lines]
    assert [match[1] for match in matches] == CLASSNAMES
    correct, counts = ([int(match[number]) for match in matches] for number in (3, 4))
    assert f"accuracy {100 * sum(correct) / 12:.2f} %" in total and sum(counts) == 12
    shares = [f"{100 * right / count:.2f}" for right, count in zip(correct, counts)]
    assert [match[2] for match in matches] == shares
    assert mean.startswith(f"mean over classes {fmean(map(float, shares)):.2f} %;")
    head, *rows = csv.reader(Path("classes.csv").read_text(encoding="utf-8").splitlines())
    assert head == ["class", "accuracy", "right", "total", "taken for"]
    assert [row[0] for row in rows] == CLASSNAMES
    assert [f"{float(row[1]):.2f}" for row in rows] == shares
    assert [row[2:4] for row in rows] == [[match[3], match[4]] for match in matches]


def test_mistakes_of_a_class_are_listed_by_their_number(capsys):
    labels, predicted = torch.tensor([0] * 7 + [2]), torch.tensor([0, 1, 2, 2, 3, 4, 4, 2])
    report.print_class_accuracy(["ant", "bee", "crane fly", "dog", "eel"], labels, predicted)
    assert capsys.readouterr().out.splitlines() == [
        "  ant        14.29 %  1 of 7, taken for crane fly 2, eel 2, bee 1",
        "  bee            -    0 of 0",
        "  crane fly 100.00 %  1 of 1",
        "  dog            -    0 of 0",
        "  eel            -    0 of 0",
    ]


def test_eval_finds_images_and_model_that_have_moved_where_it_is_told(trained, tmp_path, inputs):
    moved = shutil.copytree(inputs.data, tmp_path / "moved")
    shutil.copytree(trained, tmp_path / "run")
    split = json.loads(Path("run/split.json").read_text(encoding="utf-8"))
    Path("run/split.json").write_text(json.dumps({**split, "root": str(tmp_path / "gone")}))
    gone = str(tmp_path / "gone")
    assert_one_line(run_command("eval.py", "test", "run"), "eval.py", gone, "--image-root")
    clip = shutil.copy(inputs.clip, tmp_path / "elsewhere.pt")
    result = run_command("eval.py", "test", "run", "--image-root", moved, "--classes", "new")
    assert_one_line(result, "eval.py", "expected a CSV file for --columns or --image-root")
    result = run_command("eval.py", "test", "run", "--image-root", moved, "--model", clip)
    assert f"dpt accuracy {read_summary('run')['accuracy']:.2f} %" in result.out


def test_a_run_keeps_the_columns_and_the_image_root_of_its_csv(tmp_path, inputs, monkeypatch):
    images = shutil.copytree(inputs.data, tmp_path / "images")
    rows = [f"{path.parent.name},{path.relative_to(images)}" for path in images.glob("*/*.png")]
    Path("l.csv").write_text("\n".join(["art,foto", *rows]))
    columns = ("--columns", "image=foto,label=art")
    clip = Path(shutil.copy(inputs.clip, "clip.pt"))
    train(RunInputs(Path("l.csv"), clip), "run", *columns, "--image-root", "images",
          "--method", "zeroshot")  # fmt: skip
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = run_command("eval.py", "test", "../run", "--classes", "all")
    accuracy = f"accuracy {read_summary('../run')['accuracy']:.2f} %"
    assert (again.status, again.err) == (0, "") and accuracy in again.out
    shutil.move(images, "new")
    other = ("--data", "../l.csv", *columns, "--image-root", "new")
    assert accuracy in run_command("eval.py", "test", "../run", *other).out
    result = run_command("eval.py", "test", "../run", *columns)
    assert_one_line(result, "eval.py", "--columns", "expected with --data")


def test_eval_exports_the_model_of_a_run_into_a_new_file(trained, monkeypatch):
    def export(model, path, overwrite):  # what it writes: `test_exporting`
        assert torch.equal(model.text_prompts.ctx, read_prompts(trained)["text_prompts.ctx"])
        Path(path).write_bytes(bytes(1_500_000))

    monkeypatch.setattr(SCRIPTS["eval.py"], "export", export)
    result = run_checked("eval.py", "export", trained, "run.pt2")
    assert result.out == (
        "run.pt2: images (B, 3, 21, 21) to probabilities of 4 classes, 1.5 MB "
        "(little on cpu in fp32)\n"
    )


# Classes of images


def test_images_are_classified_with_names_and_probabilities(trained, inputs):
    images = [inputs.data / "Owl" / "0.png", inputs.data / "gnu" / "3.png"]
    result = run_checked("eval.py", "predict", trained, *images)
    guesses = parse_predictions(result)
    assert list(guesses) == [str(path) for path in images]
    model = minidpt.load_model(trained / "model.pt", minidpt.load(inputs.clip)[0])
    for path, guess in zip(images, model.predict(images), strict=True):
        names, percents = zip(*guesses[str(path)], strict=True)
        assert sorted(names) == CLASSNAMES  # 4 classes, of which up to 5 are printed
        assert list(names) == [p.classname for p in guess]
        assert percents == pytest.approx([100 * p.probability for p in guess], abs=0.051)
        assert sum(percents) == pytest.approx(100, abs=0.3)
        assert list(percents) == sorted(percents, reverse=True)


def test_classes_of_images_are_written_to_a_new_csv(trained, inputs):
    draw_image(Path("=1+1.png"))
    images = [inputs.data / "Owl" / "0.png", "=1+1.png"]
    command = ("eval.py", "predict", trained, "--top", 2, "--csv", "out.csv", *images)
    result = run_command(*command)
    rows = read_csv("out.csv")
    assert tuple(rows[0]) == classify.HEADER and rows[-1]["image"] == "'=1+1.png"  # no formula
    printed = [
        (path, name, percent)
        for path, guesses in parse_predictions(result).items()
        for name, percent in guesses
    ]
    assert printed == [
        (row["image"].lstrip("'"), row["class"], round(100 * float(row["probability"]), 1))
        for row in rows
    ]
    assert_one_line(run_command(*command), "eval.py", "--csv", "new file", "out.csv", "--overwrite")


def test_a_csv_of_classes_is_written_whole_though_nobody_reads_the_output(trained, tmp_path):
    for number in range(40):
        draw_image(tmp_path / "many" / f"{number:02d}{'x' * 200}.png")
    options = ("predict", trained, "many", "--csv", "out.csv")
    command = fork_command(ROOT / "eval.py", *options)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    with open("out.csv", newline="", encoding="utf-8") as file:
        assert len({row["image"] for row in csv.DictReader(file)}) == 40
    assert sorted(os.listdir(tmp_path)) == ["many", "out.csv"]


def test_an_image_folder_is_read_as_class_folders_are(trained, inputs):
    for path in ("a.jpg", "b.PNG", ".hidden.jpg", ".thumbnails/a.jpg", "folder.jpg/b.png"):
        draw_image(Path("mixed", path))
    draw_image(Path("elsewhere/c.png"))
    Path("mixed/link").symlink_to(Path("elsewhere").resolve())
    Path("mixed/notes.txt").write_text("no picture")
    single = str(inputs.data / "gnu" / "0.png")
    result = run_checked("eval.py", "predict", trained, "--top", 2, "mixed", single)
    names = ("a.jpg", "b.PNG", "folder.jpg/b.png", "link/c.png")
    guesses = parse_predictions(result)
    assert list(guesses) == [*(f"mixed/{name}" for name in names), single]
    assert all(len(names) == 2 for names in guesses.values())


def test_broken_images_are_named_and_the_others_still_classified(trained, tmp_path, inputs):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (tmp_path / "empty.jpg").mkdir()
    broken = ["broken.jpg", "empty.jpg", "", "x" * 300, "missing.png"]
    good = inputs.data / "gnu" / "0.png"
    result = run_command("eval.py", "predict", trained, *broken[:3], good, *broken[3:])
    assert result.status == 2
    assert list(parse_predictions(result)) == [str(good)]
    for name, line in zip(broken, result.err.splitlines(), strict=True):
        assert line.startswith("eval.py: error: ") and name[:50] in line, line


def test_an_image_is_classified_without_the_data_that_were_trained_on(trained, tmp_path, inputs):
    shutil.copytree(trained, tmp_path / "run")
    split = json.loads(Path("run/split.json").read_text(encoding="utf-8"))
    Path("run/split.json").write_text(json.dumps({**split, "root": "/gone"}))
    result = run_command("eval.py", "predict", "run", inputs.data / "gnu" / "0.png")
    assert (result.status, len(parse_predictions(result))) == (0, 1)


# Runs that cannot be tested


@pytest.mark.parametrize("name", ["data", "model"])
def test_a_config_without_data_or_model_is_refused(trained, name):
    shutil.copytree(trained, "run")
    config = json.loads(Path("run/config.json").read_text())
    for damaged in (config | {name: None}, {key: config[key] for key in config if key != name}):
        Path("run/config.json").write_text(json.dumps(damaged))
        result = run_command("eval.py", "test", "run")
        assert_one_line(result, "eval.py", "run/config.json: expected", f"'{name}'")


def test_an_empty_model_file_is_damaged_with_a_fix(trained):
    shutil.copytree(trained, "run")
    Path("run/model.pt").write_bytes(b"")
    result = run_command("eval.py", "test", "run")
    assert_one_line(result, "eval.py", "run/model.pt", "a damaged one: copy the run again, resume")
    assert "git lfs" not in result.err


def test_a_run_is_refused_with_another_clip(trained, tmp_path):
    same_sizes = save_clip(tmp_path / "same_sizes.pt", seed=1)
    other_sizes = save_clip(tmp_path / "other_sizes.pt", DEEP)
    for other in (same_sizes, other_sizes):
        result = run_command("eval.py", "test", trained, "--model", other)
        assert_one_line(result, "eval.py", "model.pt", "little", other.stem)
        assert result.out == ""


@pytest.mark.parametrize("missing", ["config.json", "split.json", "model.pt"])
def test_a_folder_without_a_run_is_refused_with_the_file_that_lacks(trained, tmp_path, missing):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    assert_one_line(run_command("eval.py", "test", "run"), "eval.py", "run", f"expected {missing}")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.pt", ""),
        ("model.pt", "PK\x03\x04 damaged"),
        ("model.pt", None),
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.json", '{"data": 5}'),
        ("config.json", "[" * 100_000),
        ("config.json", None),
        ("split.json", '{"root": "/", "train": [["a.png", NaN, "a"]]}'),
        ("split.json", "[1]"),
        ("split.json", '{"root": "/", "train": 5}'),
        ("split.json", '{"root": "/", "train": [[1, 2, 3]]}'),
        ("summary.json", '{"tests": 5}'),
        ("summary.json", None),
        ("transfer.json", "5"),
    ],
)
def test_a_damaged_run_is_named_before_a_test_on_other_data(trained, inputs, file, content):
    shutil.copytree(trained, "run")
    Path("run", file).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(Path("run", file))
    else:
        Path("run", file).write_text(content)
    result = run_command("eval.py", "test", "run", "--data", inputs.data)
    assert_one_line(result, "eval.py", f"run/{file}", "expected")
    assert result.out == ""
