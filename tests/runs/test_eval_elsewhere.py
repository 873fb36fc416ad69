"""`eval.py test RUN --data ...`: what a run knows of its classes, a test on other data keeps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.image_folders import draw_class_folders, draw_image
from helpers.run_command import SHORT, assert_one_line, read_summary, run_command
from helpers.short_runs import run_checked

import minidpt
from minidpt.data.datasets import open_dataset
from minidpt.data.naming import match_classes

NAMES = {"ox": "wild ox", "gnu": "gnu", "owl": "night bird", "red fox": "fox", "yak": "yak"}
TEMPLATE = "my {}, seen from below"


def trained(images: Path, clip: Path, out: str, *options: object) -> dict:
    """Train a short run under another template; three of its classes are renamed."""
    lines = [f"{folder}\t{name}" for folder, name in NAMES.items()]
    Path("names.txt").write_text("\n".join(lines))
    run_checked(
        "train.py", "--data", images, "--model", clip, *SHORT, "--epochs", 2, "--out", out,
        "--classnames", "names.txt", "--template", TEMPLATE, *options,
    )  # fmt: skip
    return read_summary(out)


def draw_new(root: str, counts: dict[str, int]) -> Path:
    """Draw images that are none of `images`, in a folder for each class."""
    for label, (folder, count) in enumerate(counts.items()):
        for number in range(1, count + 1):
            draw_image(Path(root, folder, f"{number}.png"), color=(number, label, 99))
    return Path(root)


def accuracies(out: str) -> tuple[str, ...]:
    match = re.search(r"accuracy ([\d.]+) %, zero-shot ([\d.]+) % on (\d+) test images", out)
    return match.groups()


def noted(run: str) -> list[dict]:
    return list(json.loads(Path(run, "transfer.json").read_text()).values())


def test_a_copy_of_the_runs_folder_is_tested_like_it(images, clip):
    content = trained(images, clip, "run")
    assert torch.load("run/model.pt", weights_only=True)["class_keys"] == sorted(NAMES)
    Path("names.txt").unlink()
    shutil.copytree(images, "elsewhere/copy")
    expected = tuple(f"{content[key]:.2f}" for key in ("accuracy", "zero_shot_accuracy")) + ("15",)
    for data in (images, "elsewhere/copy", "run/split.json"):
        out = run_checked("eval.py", "test", "run", "--data", data).out
        assert accuracies(out) == expected
        assert "told apart" not in out and "left out" not in out
    out = run_checked("eval.py", "test", "run", "--data", "elsewhere/copy").out
    assert "note: 5 of 5 classes are the run's: its names and template 'my {}, seen" in out
    run_checked("eval.py", "test", "run", "--data", "elsewhere/copy", "--template", "{}.")
    assert [entry["template"] for entry in noted("run")] == [TEMPLATE, "{}."]
    Path("other.txt").write_text("owl\tbarn owl\nyak\tox of Tibet\n")
    options = ("--data", "elsewhere/copy", "--classnames", "other.txt", "--per-class")
    out = run_checked("eval.py", "test", "run", *options).out
    classes = re.findall(r"^  (\w[\w ]*?) +[\d.]+ %", out, re.MULTILINE)
    assert classes == ["gnu", "barn owl", "wild ox", "fox", "ox of Tibet"]


@pytest.mark.parametrize("kind", ["folder", "csv", "train"])
def test_other_data_without_a_split_are_tested_whole(images, clip, kind):
    trained(images, clip, "run")
    learned_from = [file for file, *_ in json.loads(Path("run/split.json").read_text())["train"]]
    folder = draw_new("new", {"Red_Fox": 4, "owl": 3})  # in another spelling
    copied = [file for file in learned_from if file.startswith(("owl", "red fox"))]
    for file in copied:  # 3 shots of each
        where = folder / Path(file).parent.name.replace("red fox", "Red_Fox")
        shutil.copy(images / file, where / f"copy_{Path(file).name}")
    data = folder
    if kind == "csv":
        images = sorted(folder.rglob("*.png"))
        lines = [f"{image.relative_to('.')},{image.parent.name}" for image in images]
        data = Path("labels.csv")
        data.write_text("\n".join(["path,label", *lines]))
    elif kind == "train":
        data = Path("around")
        shutil.move(folder, data / "train")
    out = run_checked("eval.py", "test", "run", "--data", data).out
    assert accuracies(out)[2] == "7"
    assert "note: left out 6 of 13 images: the run was trained on them\n" in out
    assert "2 of 2 classes are the run's: its names and template 'my {}, seen" in out
    assert "note: 2 of the run's 5 classes, told apart among these 2" in out


def test_data_of_which_a_run_has_seen_all_are_an_error(images, clip):
    trained(images, clip, "run")
    for file, *_ in json.loads(Path("run/split.json").read_text())["train"]:
        Path("seen", file).parent.mkdir(parents=True, exist_ok=True)
        Path("seen", file).symlink_to(images / file)
    result = run_command("eval.py", "test", "run", "--data", "seen")
    assert_one_line(result, "eval.py", "seen: expected images new to the run", "15 of 15 images")


def test_some_classes_are_told_apart_among_all_of_the_run(images, clip):
    trained(images, clip, "run")
    draw_new("few", {"yak": 4, "owl": 4})
    two = accuracies(run_checked("eval.py", "test", "run", "--data", "few").out)
    out = run_checked("eval.py", "test", "run", "--data", "few", "--among-all", "--per-class").out
    assert "note: 2 of the run's 5 classes, told apart among all 5\n" in out
    model = minidpt.load_model("run/model.pt", minidpt.load(clip)[0])
    images = sorted(map(str, Path("few").rglob("*.png")))
    names = [NAMES[Path(image).parent.name] for image in images]
    best = [each[0].classname for each in model.predict(images, top=1)]
    expected = 100 * sum(map(str.__eq__, best, names)) / 8
    assert accuracies(out)[::2] == (f"{expected:.2f}", "8") and float(two[0]) >= expected
    assert re.search(r"  fox +- +0 of 0", out)
    table = run_checked("eval.py", "table", "run").out
    assert "| few " in table and "| few, among 5 classes " in table
    draw_image(Path("few/wolf/1.png"))
    result = run_command("eval.py", "test", "run", "--data", "few", "--among-all")
    assert_one_line(result, "eval.py", "--among-all", "'wolf'")
    assert "told apart" not in run_checked("eval.py", "test", "run", "--data", "few").out
    result = run_command("eval.py", "test", "run", "--among-all")
    assert_one_line(result, "eval.py", "--among-all", "--data")


def test_one_class_alone_is_tested_among_all(images, clip):
    trained(images, clip, "run", "--csc")
    draw_new("one", {"owl": 4})
    Path("one.csv").write_text("path,label\n" + "".join(
        f"one/owl/{number}.png,owl\n" for number in range(1, 5)
    ))  # fmt: skip
    for data in ("one", "one.csv"):
        assert_one_line(run_command("eval.py", "test", "run", "--data", data), "eval.py", data)
        out = run_checked("eval.py", "test", "run", "--data", data, "--among-all").out
        assert "note: 1 of the run's 5 classes" in out and accuracies(out)[2] == "4"


def test_more_classes_than_the_runs_keep_its_template_but_others_do_not(images, clip):
    trained(images, clip, "run", "--classes", "base")
    classes = ("gnu", "owl", "ox", "wolf", "ant", "bee", "cat")
    draw_new("more", dict.fromkeys(classes, 2))
    draw_new("others", {"owl": 2, "ant": 2, "bee": 2})
    draw_new("new", {"owl": 2, "red fox": 2})
    for data in ("more", "others", "new"):
        run_checked("eval.py", "test", "run", "--data", data)
    assert [entry["template"] for entry in noted("run")] == [TEMPLATE, "a photo of a {}.", TEMPLATE]
    out = run_checked("eval.py", "test", "run", "--data", "new", "--per-class").out
    assert "  night bird " in out and "  fox " in out  # also a class that is none of the base
    shutil.copytree(images, "copy")
    out = run_checked("eval.py", "test", "run", "--data", "copy", "--classes", "new").out
    new = list(read_summary("run")["tests"].values())[1]
    assert accuracies(out) == (f"{new['accuracy']:.2f}", f"{new['zero_shot_accuracy']:.2f}", "6")


def test_a_known_data_set_keeps_its_names_and_template(guide, clip):
    run_checked("train.py", "--data", guide, "--dataset", "EuroSAT", "--model", clip, *SHORT,
            "--shots", 1, "--epochs", 1, "--template", TEMPLATE, "--out", "run")  # fmt: skip
    out = run_checked("eval.py", "test", "run", "--data", guide, "--dataset", "EuroSAT").out
    assert noted("run")[0]["template"] == "a centered satellite photo of {}."
    assert "are the run's" not in out


def test_classes_are_matched_by_key_then_spelling_then_name(tmp_path):
    draw_class_folders(tmp_path, {"a-b": 2, "a b x": 2, "Sea_Horse": 2, "night bird": 2, "z": 2})
    dataset = open_dataset(tmp_path)
    assert dataset.class_keys == ["Sea_Horse", "a b x", "a-b", "night bird", "z"]
    keys = ["a_b_X", "owl", "seaHorse", "a-b", "n5"]
    assert match_classes(dataset, keys, ["1", "Night_Bird", "2", "3", "4"]) == [2, 0, 3, 1, None]
    twice = dataset.renamed(["m", "M", "m", "q", "r"], "{}")
    assert match_classes(twice, ["", "", ""], ["x", "m", "m"]) == [1, 2, None, None, None]


@pytest.mark.parametrize("method", ["coop", "dpt"])
def test_contexts_of_classes_serve_a_part_of_them_in_any_order(clip, method):
    loaded, _ = minidpt.load(clip)
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=2, csc=True)
    model = minidpt.build_model(loaded, ["ox", "owl", "gnu"], "a {}.", config).eval()
    some = model.for_classes(["Gnu".lower(), "ox"])
    assert torch.equal(some.text_prompts.ctx, model.text_prompts.ctx[[2, 0]])
    torch.testing.assert_close(some.text_features(), model.text_features()[[2, 0]])


def test_two_classes_that_clip_reads_as_one_are_an_error(clip, tmp_path):
    loaded, _ = minidpt.load(clip)
    config = minidpt.PromptConfig("coop", n_ctx=2)
    for first, second in (("ox", "ox"), ("sea horse", "Sea_Horse"), ("caf\xe9", "cafe\u0301")):
        names = ["gnu", first, second]
        with pytest.raises(ValueError, match=f"got '{first}' and '{second}' .classes 1 and 2."):
            minidpt.build_model(loaded, names, "a {}.", config)
        model = minidpt.build_model(loaded, names, "a {}.", config, allow_duplicates=True)
        assert model.for_classes(names[1:]).classnames == names[1:]
        model.class_keys = ["a", "b", "c"]
        model.save(tmp_path / "model.pt")
        again = minidpt.load_model(tmp_path / "model.pt", loaded)
        assert again.for_classes([*names, "Gnu"]).allow_duplicates
        assert again.class_keys == ["a", "b", "c"]
    with pytest.raises(ValueError, match="'gnu' and 'Gnu'"):
        again.for_classes(["gnu", "Gnu"], allow_duplicates=False)


def test_only_published_lists_may_have_two_classes_of_one_name(clip):
    folders = ("n03773504", "n04008634", "n01440764", "n02123045")
    draw_class_folders(Path("images"), dict.fromkeys(folders, 4))
    draw_class_folders(Path("plain"), {"ox": 4, "gnu": 4, "yak": 4})
    Path("names.txt").write_text("ox cow\ngnu Cow\n")
    command = ("train.py", "--model", clip, *SHORT, "--shots", 1, "--epochs", 1)
    run_checked(*command, "--data", "images", "--out", "run")
    run_checked(*command, "--data", "run/split.json", "--out", "again")
    run_checked(*command, "--data", "plain", "--out", "other")
    out = run_checked("eval.py", "test", "other", "--data", "images", "--per-class").out
    assert "missile" in out
    run_checked("eval.py", "test", "run", "--data", "plain")
    result = run_command(*command, "--data", "plain", "--classnames", "names.txt", "--out", "o")
    assert_one_line(result, "train.py", "got 'cow' for 'gnu' and 'ox'", "names.txt")
    split = json.loads(Path("other/split.json").read_text())
    rows = [[file, label, name.replace("yak", "Ox")] for file, label, name in split["test"]]
    Path("split.json").write_text(json.dumps({"root": split["root"], "train": rows, "test": rows}))
    result = run_command(*command, "--data", "split.json", "--out", "o")
    assert_one_line(result, "train.py", "'ox' and 'Ox' (classes 1 and 2)")


@pytest.mark.parametrize("keys", [["a"], [1, 2], "ab"])
def test_class_keys_that_are_no_text_for_each_class_are_refused(clip, keys):
    model = minidpt.build_model(minidpt.load(clip)[0], ["a", "b"], "a {}.")
    model.save("model.pt")
    content = torch.load("model.pt", weights_only=True)
    torch.save({**content, "class_keys": keys}, "model.pt")
    with pytest.raises(ValueError, match="model file model.pt: .*class_keys"):
        minidpt.load_model("model.pt", model.clip)
