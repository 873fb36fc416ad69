"""`eval.py predict` as a stream: JSON, standard input, many images in little memory."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_folders import draw_image
from helpers.run_command import ROOT, SHORT, assert_one_line, fork_command, run_command, save_clip
from helpers.short_runs import read_csv
from PIL import Image

import minidpt
from minidpt import inference
from minidpt.images.transforms import Preprocess
from minidpt.runs import classify
from minidpt.support import progress

KEYS, NAMES = ["RedGnu", "ox"], ["Red Gnu", "ox"]  # folders, classes


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of CoOp. Only read it."""
    folder = tmp_path_factory.mktemp("trained")
    for number in range(12):
        for label, name in enumerate(KEYS):
            draw_image(
                folder / "data" / name / f"{number}.png", color=(20 * number, 250 * label, 90)
            )
    save_clip(folder / "little.pt")
    options = ["--data", folder / "data", "--model", folder / "little.pt", "--out", folder / "run"]
    assert run_command("train.py", *options, *SHORT, "--method", "coop", "--epochs", 0).status == 0
    return folder / "run"


@pytest.fixture(scope="module")
def model(run) -> minidpt.PromptedCLIP:
    return minidpt.load_model(run / "model.pt", minidpt.load(run.parent / "little.pt")[0])


def draw_images(count: int, folder: str = "many") -> list[str]:
    return [
        str(draw_image(Path(folder, f"{i:03}.png"), color=(i, 255 - i, 99))) for i in range(count)
    ]


def one_by_one(model, paths: list[str], top: int = 5) -> list[list]:
    """What `predict` gives for the pixels of each image alone."""
    preprocess = Preprocess(model.clip.visual.resolution)
    images = [preprocess(Image.open(path)) for path in paths]
    return [model.predict(image[None], top)[0] for image in images]


def assert_same(actual: list, expected: list) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected):
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        # sums of a batch have another order than those of one
        assert [share for _, share in ours] == pytest.approx([s for _, s in theirs], abs=2e-6)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def no_longer_than(seconds: float, end: Callable[[], object]) -> Iterator[None]:
    """Ends what would be waited for without end."""
    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# In Python


def test_images_in_batches_give_what_each_gives_alone(model, monkeypatch):
    monkeypatch.setattr(inference, "PREDICT_BATCH", 3)
    paths = draw_images(7)
    expected = one_by_one(model, paths)
    assert_same(model.predict(paths), expected)
    for workers in (0, 2):
        actual = list(model.predict_each(iter(paths), workers=workers))
        assert [path for path, _ in actual] == paths
        assert_same([prediction for _, prediction in actual], expected)


def test_an_image_that_cannot_be_read_is_an_error_in_its_place(model, monkeypatch):
    monkeypatch.setattr(inference, "PREDICT_BATCH", 2)
    good, other = draw_images(2)
    Path("broken.png").write_bytes(b"no picture")
    paths = ["broken.png", "gone.png", good, "gone.png", other]  # the first batch has none to see
    actual = [result for _, result in model.predict_each(paths)]
    assert [type(result).__name__ for result in actual] == [
        *("ValueError", "FileNotFoundError", "list", "FileNotFoundError", "list")
    ]
    with pytest.raises(FileNotFoundError, match="gone.png"):
        model.predict([good, "gone.png", "broken.png"])
    assert not [t for t in threading.enumerate() if t.name.startswith("minidpt")]


def test_predictions_that_are_not_finite_are_an_error_for_each_image(run):
    shutil.copytree(run, "diverged")  # prompts finite and so large that no logit is
    files, clip = draw_images(2), minidpt.load(run.parent / "little.pt")[0]
    model = minidpt.load_model(run / "model.pt", clip)
    model.text_prompts.ctx.data.fill_(3e38)
    model.save("diverged/model.pt")
    with pytest.raises(ValueError, match="^diverged/model.pt: expected finite logits"):
        minidpt.load_model("diverged/model.pt", clip).predict(files)
    result = run_command("eval.py", "predict", "diverged", *files, "--json", "-")
    assert_one_line(result, "eval.py", "diverged/model.pt", "finite", "lower")
    answers = lines(result.out)
    assert [answer["image"] for answer in answers] == files
    assert all("diverged/model.pt: expected finite logits" in a["error"] for a in answers)


def test_no_class_at_all_is_one_error_not_one_for_each_image(model):
    with pytest.raises(ValueError, match="top: expected at least 1, got 0"):
        next(model.predict_each(draw_images(2), top=0))


def test_few_images_are_read_ahead_of_those_that_are_classified(model, monkeypatch):
    monkeypatch.setattr(inference, "PREDICT_BATCH", 2)
    (image,), asked = draw_images(1), []

    def many():
        for _ in range(999):
            asked.append(image)
            yield image

    results = model.predict_each(many(), workers=2)
    for _ in range(9):
        next(results)
    results.close()
    assert len(asked) <= 9 + 1 + 2 * 2 + 1  # the rest of a batch, two more, and one


def test_open_images_are_read_by_the_callers_thread_alone(model, monkeypatch):
    """Those of one file share its place in it."""
    readers = set()

    def reading(*arguments):
        readers.add(threading.current_thread())
        return eval_pixels(*arguments)

    eval_pixels = inference.eval_pixels
    monkeypatch.setattr(inference, "eval_pixels", reading)
    paths = draw_images(3)
    model.predict([io.BytesIO(Path(path).read_bytes()) for path in paths])
    assert readers == {threading.current_thread()}
    model.predict(paths)
    assert len(readers) > 1


# Standard input


def test_one_read_gives_its_complete_lines():
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as other, no_longer_than(60, other.close):
        batches = classify.read_lines(reading)
        other.write(b" a b.png \nc")
        assert next(batches) == [" a b.png "]
        other.write(b"af\xe9.png\r\n\nlast")
        assert next(batches) == [os.fsdecode(b"caf\xe9.png"), ""]
        other.close()
        assert list(batches) == [["last"]]
    os.close(reading)


@pytest.mark.parametrize("more", [0, 1, classify.MAX_LINE, 5 * classify.MAX_LINE + 7])
@pytest.mark.parametrize("filling", [b"a", b"\r"])
def test_a_line_longer_than_any_path_is_one_error(model, more, filling, tmp_path):
    (good,) = draw_images(1)
    long = good.encode() + filling * (classify.MAX_LINE + more - len(good))
    for end, after in ((b"\n", good), (b"\r\n", good), (b"", None)):
        (tmp_path / "lines").write_bytes(long + end + (after or "").encode())
        with open(tmp_path / "lines", "rb") as stream:
            paths = [path for batch in classify.read_lines(stream.fileno()) for path in batch]
        (path, error), *others = model.predict_each(paths, top=1)
        assert type(error) in (OSError, ValueError, FileNotFoundError)
        assert len(path) <= classify.MAX_LINE
        assert [path for path, _ in others] == [after] * bool(after)
        assert all(isinstance(actual, list) for _, actual in others)


def test_a_stream_that_cannot_be_read_is_an_error(tmp_path):
    with open(tmp_path / "new", "wb") as stream, pytest.raises(OSError):
        next(classify.read_lines(stream.fileno()))


# Commands


@pytest.fixture
def service(run):
    """Begins `eval.py predict RUN - --json -` in a process of its own."""
    command = fork_command(ROOT / "eval.py", "predict", run, "-", "--json", "-", "--top", 1)
    with subprocess.Popen(
        command, encoding="utf-8",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        with no_longer_than(60, process.kill):
            yield process
        process.kill()


def test_a_service_answers_each_path_at_once_and_ends_with_its_input(service, model):
    good, other = draw_images(2)
    expected = one_by_one(model, [good, other], top=1)
    answers = []
    for path in (good, "gone.png", "", "many", other):
        print(path, file=service.stdin, flush=True)
        answers.append(json.loads(service.stdout.readline()))  # or waits for ever
    assert [answer["image"] for answer in answers] == [good, "gone.png", "", "many", other]
    for answer, (prediction,) in zip(answers[::4], expected):
        ((share, name),) = [(p["probability"], p["class"]) for p in answer["predictions"]]
        assert name == prediction.classname and share == pytest.approx(prediction.probability)
    assert "gone.png: expected a file" in answers[1]["error"]
    assert answers[2]["error"] == "image '': expected a file, got none"
    assert answers[3]["error"] == "image many: expected a file, got a folder"
    service.stdin.close()
    assert service.stdout.read() == ""
    assert service.wait() == 2  # some could not be read
    errors = service.stderr.read().splitlines()
    assert errors == [f"eval.py: error: {answer['error']}" for answer in answers[1:4]]


def test_a_service_whose_reader_has_gone_ends_as_other_commands_do(service):
    (image,) = draw_images(1)
    print(image, file=service.stdin, flush=True)
    service.stdout.readline()
    service.stdout.close()
    print(image, file=service.stdin, flush=True)
    assert service.wait() == 141  # its input is still open
    assert service.stderr.read() == ""


def test_json_lines_hold_what_is_printed_and_what_failed(run, model):
    paths = draw_images(3)
    result = run_command("eval.py", "predict", run, "--json", "o.jsonl", *paths, "gone.png")
    assert result.status == 2
    *actual, failed = lines(Path("o.jsonl").read_text(encoding="ascii"))
    assert [entry["image"] for entry in actual] == paths
    assert_same(
        [[(p["class"], p["probability"]) for p in entry["predictions"]] for entry in actual],
        one_by_one(model, paths),
    )
    keys = dict(zip(NAMES, KEYS))
    assert all(p["label"] == keys[p["class"]] for entry in actual for p in entry["predictions"])
    assert failed["image"] == "gone.png" and failed["error"] in result.err
    assert result.out.count("\n") == 3


def test_json_on_standard_output_has_nothing_beside_it(run):
    """Also where there are notes: here of files that are not read."""
    draw_images(2)
    Path("many/a.heics").write_bytes(b"")
    result = run_command("eval.py", "predict", run, "--json", "-", "many")
    assert result.status == 0 and "note: many: not read: 1 .heics" in result.err
    assert [entry["image"] for entry in lines(result.out)] == ["many/000.png", "many/001.png"]


def test_json_is_utf8_but_for_what_is_not_which_csv_spells_out(run):
    name = os.fsdecode(b"caf\xe9 \xc3\xbc \n\x1b\xc2\x9b.png")
    draw_image(Path(name))
    command = ("eval.py", "predict", run, name, "--json")
    run_command(*command, "o.jsonl", "--csv", "o.csv")
    line = Path("o.jsonl").read_bytes()
    assert b'"image": "caf\\udce9 \xc3\xbc \\n\\u001b\\u009b.png"' in line
    assert json.loads(line)["image"] == name and run_command(*command, "-").out == line.decode()
    assert Path("o.csv").read_text(encoding="utf-8").count("caf\\udce9 ü \n\x1b\x9b.png") == 2


def test_a_csv_has_keys_beside_names_and_images_that_failed(run, model):
    (good,) = draw_images(1)
    run_command("eval.py", "predict", run, "gone.png", good, "--csv", "o.csv", "--top", 1)
    failed, row = read_csv("o.csv")
    assert failed.pop("error") == "image gone.png: expected a file, got none"
    assert failed == dict.fromkeys(classify.HEADER[:-1], "") | {"image": "gone.png"}
    (best,) = one_by_one(model, [good], top=1)[0]
    key = KEYS[NAMES.index(best.classname)]
    assert list(row.values())[:3] + [row["error"]] == [good, key, best.classname, ""]


def test_an_image_is_unknown_below_a_probability(run, model):
    paths = draw_images(2)
    shares = [best.probability for (best,) in one_by_one(model, paths, top=1)]
    unsure, sure = sorted(paths, key=dict(zip(paths, shares)).get)
    command = ("eval.py", "predict", run, unsure, sure, "--unknown-below", sum(shares) / 2)
    first, second = run_command(*command, "--json", "o.jsonl", "--csv", "o.csv").out.splitlines()
    assert re.fullmatch(f"{unsure}: unknown \\(likeliest: .* %, .* %\\)", first)
    assert "unknown" not in second
    assert [answer["unknown"] for answer in lines(Path("o.jsonl").read_text())] == [True, False]
    assert [len(answer["predictions"]) for answer in lines(Path("o.jsonl").read_text())] == [2, 2]
    assert [row["unknown"] for row in read_csv("o.csv")] == ["unknown"] * 2 + [""] * 2
    assert_one_line(run_command(*command[:-1], 60), "eval.py", "--unknown-below", "0 to 1", "60")


def load_arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_features_of_images_that_can_be_read_are_written_with_the_classes(run, model):
    paths = draw_images(2)
    command = ["predict", run, paths[0], "gone.png", paths[1], "--features"]
    assert run_command("eval.py", *command, "o.npz").status == 2
    content = load_arrays("o.npz")
    assert content["paths"].tolist() == paths and content["features"].dtype == np.float32
    assert (content["classnames"].tolist(), content["class_keys"].tolist()) == (NAMES, KEYS)
    logits = float(model.clip.logit_scale.exp()) * content["features"] @ content["class_features"].T
    shares = torch.tensor(logits).softmax(dim=-1).max(dim=-1).values.tolist()
    best = [best.probability for (best,) in one_by_one(model, paths, top=1)]
    assert shares == pytest.approx(best, abs=1e-5)
    assert_one_line(run_command("eval.py", *command, "o.csv"), "eval.py", "--features", ".npz")


def test_files_of_an_earlier_command_are_replaced_when_all_is_there(run, monkeypatch):
    paths = draw_images(2)
    options = ["--csv", "o.csv", "--json", "o.jsonl", "--features", "o.npz", "--overwrite"]
    command = ["eval.py", "predict", run, *options]
    assert run_command(*command, *paths).status == 0
    before = {name: Path(name).read_bytes() for name in ("o.csv", "o.jsonl", "o.npz")}
    with monkeypatch.context() as patch:
        patch.setattr(inference, "classify_batch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_command(*command, paths[0])
    assert {name: Path(name).read_bytes() for name in before} == before
    assert sorted(os.listdir()) == ["many", *before]
    assert run_command(*command, paths[0]).status == 0
    assert [entry["image"] for entry in lines(Path("o.jsonl").read_text())] == paths[:1]
    assert len(read_csv("o.csv")) == 2 and load_arrays("o.npz")["paths"].tolist() == paths[:1]


def test_the_file_of_a_stream_is_replaced_at_once():
    Path("o.csv").write_text("an earlier one")
    stream = Namespace(images=["-"], overwrite=True)
    with pytest.raises(ZeroDivisionError), classify.open_output("o.csv", stream) as file:
        print("answer", file=file, flush=True)
        assert Path("o.csv").read_text() == "answer\n"
        raise ZeroDivisionError
    assert Path("o.csv").read_text() == "answer\n"


@pytest.mark.parametrize("option", ["--csv", "--json", "--features"])
def test_a_file_that_is_not_of_an_earlier_command_is_never_replaced(run, option):
    Path("mine.npz").write_text("image,label,class,split\n")  # a list of images to learn from
    np.savez("features.npz", mine=1)
    os.symlink("mine.npz", "link.npz")
    command = ("eval.py", "predict", run, *draw_images(1), "--overwrite", option)
    for name in ("mine.npz", "features.npz", "link.npz", "many"):
        result = run_command(*command, name)
        assert_one_line(result, "eval.py", option, "expected a new file", name)
    assert Path("mine.npz").read_text() == "image,label,class,split\n"


def test_an_answer_is_in_the_file_before_the_next_image_is_classified(run, monkeypatch):
    monkeypatch.setattr(inference, "PREDICT_BATCH", 1)
    sizes, classify_batch = [], inference.classify_batch

    def noting(*options):
        content = Path("o.jsonl").read_text()
        sizes.append(content.count("\n"))
        return classify_batch(*options)

    monkeypatch.setattr(inference, "classify_batch", noting)
    run_command("eval.py", "predict", run, "--json", "o.jsonl", *draw_images(3))
    assert sizes == [0, 1, 2]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_what_was_classified_before_a_stop_stays_in_all_files(run, monkeypatch, error, status):
    monkeypatch.setattr(inference, "PREDICT_BATCH", 1)
    classify_batch, calls = inference.classify_batch, []

    def stopped(*options):
        calls.append(options)
        if len(calls) > 2:
            raise error
        return classify_batch(*options)

    monkeypatch.setattr(inference, "classify_batch", stopped)
    options = ["predict", run, "--csv", "o.csv", "--json", "o.jsonl", *draw_images(4)]
    result = run_command("eval.py", *options)
    assert result.status == status
    for name in ("o.csv", "o.jsonl"):
        assert f"error: {name}: stopped early, it lacks images\n" in result.err
    assert Path("o.jsonl").read_text().count("\n") == 2
    assert Path("o.csv").read_text().count("\n") == 1 + 2 * 2
    result = run_command("eval.py", "predict", run, "--json", "new.jsonl", "many")
    assert result.status == status and not Path("new.jsonl").exists()  # it would have no line


def test_a_new_file_is_none_that_a_link_points_to():
    Path("o.csv").symlink_to("gone")
    args = Namespace(overwrite=False, images=["a.png"])
    with pytest.raises(FileExistsError), classify.open_output("o.csv", args):
        pass
    assert os.readlink("o.csv") == "gone" and not Path("gone").exists()


def test_many_images_are_counted_where_their_lines_go_elsewhere(run, monkeypatch):
    monkeypatch.setattr(classify, "PREDICT_BATCH", 2)
    monkeypatch.setattr(inference, "PREDICT_BATCH", 2)
    monkeypatch.setattr(progress, "AFTER", 0.0)
    result = run_command("eval.py", "predict", run, *draw_images(5), "gone.png")
    counted = [line.split(" · ")[0] for line in result.progress.splitlines()]
    assert counted[-3:] == ["images 4/6", "images 5/6", "images 6/6"]
    assert result.err.startswith("eval.py: error: image gone.png")
    assert "images" not in run_command("eval.py", "predict", run, "many/000.png").progress


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("predict RUN - a.png", ["IMAGE", "'-' alone"]),
        ("predict RUN many --json taken", ["--json", "new file", "taken"]),
        ("predict RUN many --json nodir/o", ["--json", "folder that exists"]),
        ("predict RUN many --json ./o --csv o", ["--json", "another file than --csv"]),
        ("predict RUN many --json many/o", ["file many/o", "data folder", "--json"]),
        ("predict RUN many --csv many/o", ["file many/o", "data folder", "--csv"]),
        ("predict RUN a.png --json DATA/o", ["outside the data folder", "--json"]),
        ("test RUN --per-class --csv DATA/o", ["outside the data folder", "--csv"]),
        ("export RUN DATA/o.pt2", ["outside the data folder", "FILE"]),
    ],
)
def test_a_place_for_results_that_makes_no_sense_is_refused(run, command, words):
    draw_images(1)
    Path("taken").touch()
    data = str(run.parent / "data")
    options = command.replace("RUN", str(run)).replace("DATA", data).split()
    assert_one_line(run_command("eval.py", *options), "eval.py", *words)
    assert sorted(os.listdir()) == ["many", "taken"] and os.listdir("many") == ["000.png"]
