"""report.html: what is in it, that it needs nothing else, and that it never fails a run."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_folders import draw_image
from helpers.run_command import (
    SCRIPTS,
    SHORT,
    assert_one_line,
    read_summary,
    run_command,
    save_clip,
)
from helpers.short_runs import RunInputs
from helpers.tiny_models import WIDE, clip_state
from PIL import Image

import minidpt
from minidpt.prompts import nearest_words
from minidpt.runs import page as html
from minidpt.runs import report
from minidpt.runs.config import RunConfig, RunRecord
from minidpt.runs.folders import RunFolder
from minidpt.runs.page import tag
from minidpt.runs.report import HEADER, class_results, read_predictions, write_report

NASTY = "<script>alert(1)</script>"
CLASSNAMES = ["Owl", NASTY, 'a "b" & <i>', "=sum(1)", "\u05d0\u05d1 x"]
KEYS = ["Owl_", *CLASSNAMES[1:]]  # what the CSV file calls them


class Page(HTMLParser):
    """What a page consists of: tags with attributes, and its text beyond the style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(folder: str | Path) -> Page:
    return Page((Path(folder) / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> RunInputs:
    """A list of images whose classes have names that are no good HTML; a CLIP."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = []
    for label, name in enumerate(KEYS):
        for number in range(6):
            path = draw_image(
                folder / f"{label}/{number}.png", (27, 23), (40 * label, 30 * number, 90)
            )
            rows.append((path, name, "train" if number < 3 else "test"))
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return RunInputs(folder / "list.csv", save_clip(folder / "little.pt", WIDE))


def train(inputs: RunInputs, *options: object):
    result = run_command("train.py", *inputs.options, *SHORT, *options)
    assert result.status == 0, result
    return result


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory) -> Path:
    """A run of DPT. Only read it."""
    run = tmp_path_factory.mktemp("runs") / "dpt"
    assert train(inputs, "--out", run).err == ""
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


def test_predictions_are_those_of_the_model_and_of_zero_shot_clip(trained, inputs):
    model = minidpt.load_model(trained / "model.pt", minidpt.load(inputs.clip)[0])
    plain = model.template_features
    with open(trained / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 and tuple(rows[0]) == HEADER
    for row in rows:
        path = inputs.data.parent / row["path"]
        ((likeliest,),) = model.predict(path, top=1)
        image = minidpt.load(inputs.clip)[1](Image.open(path))[None]
        feature = torch.nn.functional.normalize(model.clip.encode_image(image), dim=-1)
        shares = (model.clip.logit_scale.exp() * feature @ plain.T).softmax(-1)[0]
        expected = [row["class"].removeprefix("'"), likeliest.classname]
        expected.append(model.classnames[int(shares.argmax())])
        assert expected[0] == CLASSNAMES[int(path.parent.name)]
        names_read = [row[name].removeprefix("'") for name in ("class", "learned", "zero-shot")]
        assert names_read == expected
        keys = [row[name].removeprefix("'") for name in HEADER[1:8] if name.endswith("label")]
        assert keys == [KEYS[CLASSNAMES.index(name)] for name in expected]
        assert float(row["learned probability"]) == pytest.approx(likeliest.probability, abs=2e-5)
        assert float(row["zero-shot probability"]) == pytest.approx(float(shares.max()), abs=2e-5)


def test_predictions_of_a_base_to_new_run_are_of_the_base_classes(inputs, tmp_path):
    train(inputs, "--classes", "base", "--out", tmp_path / "base", "--method", "coop")
    names = json.loads((tmp_path / "base/split.json").read_text())["class_keys"]
    labels, learned, _ = read_predictions(RunFolder(tmp_path / "base"), names)
    results = class_results(labels, learned.predicted, len(names))
    assert [result.images for result in results] == [3, 3, 3]
    mean = sum(result.accuracy for result in results) / 3
    assert mean == pytest.approx(read_summary(tmp_path / "base")["accuracy"])
    text = page_of(tmp_path / "base").text
    assert "3 classes (base)" in text and "harmonic mean" in text
    assert "of 9 test images are classified right" in text


def test_counts_of_predictions_are_those_of_a_loop(run):
    names, rows = ["a", "b", "c"], np.random.default_rng(0).integers(0, 3, (40, 3)).tolist()
    with open(run / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *(
            (f"{n}.png", *[names[a]] * 2, *[names[b]] * 2, 0.01 * n, *[names[c]] * 2, 0.5)
            for n, (a, b, c) in enumerate(rows)
        )])  # fmt: skip
    labels, predictions, _ = read_predictions(RunFolder(run), names)
    for label, result in enumerate(class_results(labels, predictions.predicted, 3)):
        learned = [row[1] for row in rows if row[0] == label]
        assert (result.images, result.correct) == (len(learned), learned.count(label))
        mistakes = {each: learned.count(each) for each in learned if each != label}
        assert dict(result.mistakes) == mistakes
        assert result.accuracy == pytest.approx(100 * learned.count(label) / len(learned))


def test_the_report_says_what_was_run_and_how_it_went(trained):
    page, result = page_of(trained), read_summary(trained)
    for text in (
        "DPT on", "5 classes", "3 shots", "6 epochs", "15 training images", "15 test images",
        f"{result['accuracy']:.2f} %", f"{result['zero_shot_accuracy']:.2f} %", "training loss",
        "training accuracy (random crops), %", "learning rate", "Accuracy by class",
        "Confusion matrix", "Surest mistakes", "Learned context in words", "All settings",
        "Dual-modality Prompt Tuning (Xing et al. 2023)", *result["notes"],
        f"{result['largest_class_share']:.2f} % largest class accuracy of always naming",
        f"{result['mean_confidence']:.2f} % mean confidence mean probability",
    ):  # fmt: skip
        assert text in page.text, text
    config = json.loads((trained / "config.json").read_text())
    for name in ("seed", "device", "precision", "data", "template"):
        assert f"{name} {(config | config['record'])[name]} " in page.text, name
    assert [name for name, _ in page.tags].count("svg") == 3 + 5  # charts, a class each
    assert "left out" not in page.text


def test_names_from_the_data_are_text(trained):
    page = page_of(trained)
    for name in CLASSNAMES:
        assert " ".join(name.split()) in page.text
    assert not {name for name, _ in page.tags} & {"script", "link", "iframe", "a", "object"}
    assert tag("p", "<\x1b\udc80>", title='"') == '<p title="&quot;">&lt;\\x1b\\udc80&gt;</p>'


def test_a_class_without_test_images_is_in_the_matrix_alone():
    results = class_results(torch.tensor([0, 0]), torch.tensor([0, 1]), 2)
    assert "Owl" in report.confusion_matrix(["Owl", "gnu"], results)
    by_class = report.accuracy_by_class(["Owl", "gnu"], results, results)
    assert by_class.count("<tr>") == 2 and "gnu 1" in by_class  # a head and the Owl's


def test_the_page_refers_to_nothing_outside(trained):
    text = (trained / "report.html").read_text(encoding="utf-8")
    sources = [
        attrs[name] for _, attrs in Page(text).tags for name in ("src", "href") if name in attrs
    ]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|http(?!-equiv)", re.sub(r'src="[^"]*"', "", text))


def test_eval_makes_the_report_again_from_the_files(run):
    made = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    result = run_command("eval.py", "report", run)
    assert (result.status, result.out, result.err) == (0, f"{run}: report.html\n", "")
    assert (run / "report.html").read_bytes() == made


def test_what_the_files_do_not_give_is_left_out_with_a_note(run, tmp_path):
    mistakes = len(re.findall("<img", (run / "report.html").read_text(encoding="utf-8"))) - 15
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"model": "gone.pt"}))
    result = run_command("eval.py", "report", run)
    assert result.status == 0 and "Maps of attention: left out" in result.out
    assert "Maps of attention: left out" in page_of(run).text
    assert [name for name, _ in page_of(run).tags].count("img") == 15 + mistakes // 3

    assert write_report(run, root=str(tmp_path)) and "img" not in dict(page_of(run).tags)
    assert "images left out" in page_of(run).text and "Surest mistakes" in page_of(run).text

    for name in ("predictions.csv", "words.json", "metrics.jsonl"):
        (run / name).unlink()
    notes = write_report(run)
    assert [note.split(":")[0] for note in notes] == ["Curves", "Classes and mistakes", "Words"]
    assert all(note in page_of(run).text for note in [*notes, "All settings"])


def test_the_report_of_an_unfinished_run_has_one_note(run):
    for name in ("predictions.csv", "words.json", "summary.json"):
        (run / name).unlink()
    (note,) = write_report(run)
    assert re.fullmatch(rf"no result yet: \S* ?\S*train.py --resume {run} ends the run", note)
    page = page_of(run)
    assert note in page.text and "training loss" in page.text and "Euclidean" not in page.text


@pytest.mark.parametrize(("accuracy", "zero_shot", "largest", "better"), [
    (24.3, 14.8, 50, "naming the largest class"), (24.3, 30, 20, "zero-shot CLIP"),
    (24.3, 24.3, 24.3, None), (24.3, 10, None, None),
])  # fmt: skip
def test_advice_follows_a_result_worse_than_none(accuracy, zero_shot, largest, better):
    summary = {"accuracy": accuracy, "zero_shot_accuracy": zero_shot}
    text = report.advice(summary | {"largest_class_share": largest})
    assert (better is None) == (text == "") and f"worse than {better}" in text or not text


def test_images_shown_are_of_all_classes_and_the_surest_mistakes(run):
    shown = report.RunReport(RunFolder(run), lambda: None, None)
    shown.split |= {split: [[f"{n}.png", n // 20, "ox"] for n in range(100)] for split in
                    ("train", "test")}  # fmt: skip
    shown.views = lambda path, side, model=None: [(path, Image.new("RGB", (side, side)))]

    def numbers(markup: str) -> list[int]:
        tags = Page(markup).tags
        return [int(attrs["alt"].removesuffix(".png")) for name, attrs in tags if name == "img"]

    assert numbers(shown.training_images()) == [*range(0, 100, 4)]
    labels = torch.arange(100) // 20
    right, shares = torch.arange(100) % 2 == 0, torch.arange(100) / 100
    predicted = report.EvalPredictions(torch.where(right, labels, (labels + 1) % 5), shares)
    assert numbers(shown.mistakes(labels, predicted, predicted)) == [*range(99, 51, -2)]


@pytest.mark.parametrize("content", [
    "", "a,b\n", ",".join(HEADER) + "\n", ",".join(HEADER) + "\nx,Owl,,gnu,,0.5,Owl,,0.5\n",
    ",".join(HEADER) + "\nx.png,Owl,,Owl,,nan,Owl,,0.5\n", ",".join(HEADER) + "\nx.png,Owl\n",
    ",".join(HEADER) + '\n"' + "x" * 200_000,
], ids=["empty", "header", "no rows", "class", "nan", "short", "quote"])  # fmt: skip
def test_damaged_predictions_are_one_note(run, content):
    (run / "predictions.csv").write_text(content)
    (note,) = write_report(run, lambda: pytest.fail("no picture, no model"))
    assert note.startswith("Classes and mistakes: left out: ") and len(note) <= 500


HUGE = f"1{'0' * 400}"


@pytest.mark.parametrize(("name", "pattern", "other", "expected"), [
    ("metrics.jsonl", r'"lr": {[^}]*}(?=.*\n\Z)', '"lr": {}', "Curves: .*KeyError.'visual'"),
    ("metrics.jsonl", r'"visual": [^,}]+', '"visual": null', "Curves: .*TypeError"),
    ("metrics.jsonl", r'"loss": [^,]+', f'"loss": {HUGE}', "Curves: .*, line 1: .* no finite"),
    ("metrics.jsonl", r'"loss": [^,]+', '"loss": NaN', "Curves: .*, line 1: .*NaN is no finite"),
    ("metrics.jsonl", r'"loss": [^,]+', '"loss": -1.7e308', "Curves: .*OverflowError"),
    ("summary.json", r'"seconds": [\d.]+', f'"seconds": {HUGE}', "Accuracy: .* no finite"),
    ("summary.json", r'"accuracy": [\d.]+', '"accuracy": "x"', "Accuracy: .* 'accuracy'"),
    ("words.json", r"\d+\.\d+", HUGE, "Words: .* no finite"),
])  # fmt: skip
def test_a_damaged_file_is_a_note_and_the_rest_is_reported(run, name, pattern, other, expected):
    text, count = re.subn(pattern, other, (run / name).read_text(), count=1)
    assert count == 1
    (run / name).write_text(text)
    (note,) = write_report(run)
    assert re.match(expected, note) and note.count(str(run / name)) == 1, note
    for heading in ("All settings", "Surest mistakes", note):
        assert heading in page_of(run).text
    assert ("training loss" in page_of(run).text) == (not expected.startswith("Curves"))
    assert "Euclidean" in page_of(run).text or expected.startswith("Words")


def test_a_folder_in_the_reports_place_is_one_line(run):
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    result = run_command("eval.py", "report", run)
    assert_one_line(result, "eval.py", f"{run}/report.html: expected a file", "got a folder")
    assert not list(run.glob("*.part"))


def test_a_folder_without_a_run_is_one_line(tmp_path):
    result = run_command("eval.py", "report", tmp_path)
    assert_one_line(result, "eval.py", "expected finished runs")


@pytest.mark.parametrize(
    ("function", "error", "output"),
    [
        ("write_report", OSError("disk full"), "the report"),
        ("write_predictions", ZeroDivisionError("oh"), "the list of predictions or of words"),
    ],
)
def test_an_optional_output_that_fails_is_named_and_fails_no_run(
    inputs, tmp_path, monkeypatch, function, error, output
):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(SCRIPTS["train.py"], function, fail)
    result = train(inputs, "--out", tmp_path / "run", "--epochs", 1)
    assert result.err == f"train.py: error: {tmp_path}/run: {output} is left out: {error}\n"
    assert read_summary(tmp_path / "run")["accuracy"] >= 0


def test_a_sweep_ends_with_a_report_of_all_its_runs(sweep, tmp_path):
    page, table = page_of(sweep[0]), (sweep[0] / "table.md").read_text(encoding="utf-8")
    cells = [cell.strip() for line in table.splitlines() for cell in line.strip("|").split("|")]
    assert all(cell in page.text for cell in cells if re.match(r"[\d.]+ ± ", cell))
    assert "9 runs" in page.text and "shots (training images per class)" in page.text
    assert not list(sweep[0].glob("*/report.html"))  # but with eval.py
    for method in ("Zero-shot CLIP (Radf", "CoOp, Context", "DPT, Dual-modality Prompt Tuning"):
        assert method in page.text
    assert "VPT" not in page.text
    links = [attrs["href"] for name, attrs in page.tags if name == "a"]
    assert links == sorted(path.parent.name for path in sweep[0].glob("*/summary.json"))

    runs = shutil.copytree(sweep[0], tmp_path / "runs", ignore=shutil.ignore_patterns("*dpt*"))
    run = next(runs.glob("*coop*")).rename(runs / "a #1")
    assert run_command("eval.py", "report", run, runs).status == 0 and page_of(run)
    assert [attrs["href"] for name, attrs in page_of(runs).tags if name == "a"][0] == (
        "a%20%231/report.html"
    )


def test_of_a_very_large_run_the_report_is_small_and_good(tmp_path, monkeypatch):
    classes, images, epochs, rng = 1000, 50_000, 1000, np.random.default_rng(0)
    names = [f"{NASTY} {number}" for number in range(classes)]
    rows = [[f"{n}.png", n % classes, names[n % classes]] for n in range(images)]
    for number in range(32):
        noise = rng.integers(0, 256, (300, 300, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png", compress_level=0)
    views = [("", Image.fromarray(noise[: report.SIDE, : report.SIDE]))] * 3
    monkeypatch.setattr(report, "attention_panels", lambda *arguments: [views])
    run = RunFolder(tmp_path)
    prompts = minidpt.PromptConfig(method="vlp")
    config = RunConfig("d", prompts, model="m", guidance_epochs=300)
    run.create(config, RunRecord("c", "d", "cpu", "fp32", True))
    run.write_json("summary.json", {
        "accuracy": 50, "zero_shot_accuracy": 40, "seconds": 9, "dataset": "large", "model": "m",
        "method": "vlp", "shots": 1, "seed": 1, "notes": ["oh"] * 999,
        "tests": {"large": {"accuracy": 50, "zero_shot_accuracy": 40}},
    })  # fmt: skip
    run.write_json("split.json", {
        "name": "large", "root": str(tmp_path), "classnames": names, "train": rows[:32],
        "test": rows,
    })  # fmt: skip
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for epoch in range(1, epochs + 1):
            record = {"loss": 1 / epoch, "train_accuracy": 50, "lr": {"visual": 0.1, "text": 0.2}}
            file.write(json.dumps({"epoch": epoch, **record}) + "\n")
    with open(tmp_path / "predictions.csv", "w", newline="") as file:
        taken = rng.integers(0, classes, images)
        csv.writer(file).writerows([HEADER, *(
            (f"{n}.png", *[names[n % classes]] * 2, *[names[taken[n]]] * 2, 1 - n / images,
             *[names[0]] * 2, 0.5)
            for n in range(images)
        )])  # fmt: skip
    notes = write_report(tmp_path, lambda: "a model")
    assert [note.split(":")[0] for note in notes] == ["Words"]
    page = page_of(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert [name for name, _ in page.tags].count("img") == 3 * 24 + 32
    assert "taken for" in page.text and "Confusion matrix" not in page.text
    assert "more notes in summary.json: 979" in page.text
    assert "The 500 lowest of 1,000 classes" in page.text


def test_nearest_words_are_those_of_all_distances_in_double_precision():
    clip = minidpt.build_clip(clip_state(WIDE))
    table = clip.token_embedding.weight
    ctx = torch.randn(2, table.shape[1], generator=torch.Generator().manual_seed(0))
    for vector, nearest in zip(ctx, nearest_words(ctx, clip, 3), strict=True):
        distances = np.sqrt(np.square((vector - table).double().numpy()).sum(axis=1))
        order = np.argsort(distances)[:3].tolist()
        assert [d for _, d in nearest] == pytest.approx([distances[i] for i in order], abs=1e-4)
        texts = [minidpt.clip.tokenizer.decode([i]) for i in order]
        assert [word for word, _ in nearest] == [
            text.strip() if text.endswith(" ") else f"{text}-" for text in texts
        ]


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (52.3, 96, [50, 60, 70, 80, 90, 100]), (3, 3, [3, 4]),
    (0.002, 0.002, [0.002, 0.0025]), (9.0989, 9.0989, [8, 10]), (0, 0, None),
    (1e-5, 0.01, [0, 0.002, 0.004, 0.006, 0.008, 0.01]),
])  # fmt: skip
def test_axes_have_round_numbers_that_hold_all_values(low, high, expected):
    ticks = html.ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and len(set(ticks)) == len(ticks) >= 2
    assert expected is None or ticks == pytest.approx(expected)


def test_a_line_passes_through_its_points_and_bars_have_the_deviation():
    series = html.Series("a", "c0", [(0, 0), (1, 5), (2, 10)], [0, 1, 0])
    svg = html.line_chart("y", "x", [series])
    left, right = html.LEFT, html.WIDTH - html.RIGHT
    top, bottom = html.TOP, html.HEIGHT - html.BOTTOM
    middle = (left + right) / 2, (top + bottom) / 2
    ((path),) = re.findall(r'd="M([\d.,L]+)" class="line"', svg)
    assert path == f"{left}.0,{bottom}.0L{middle[0]},{middle[1]}L{right}.0,{top}.0".replace(
        ".00", ".0"
    )
    (x, high, low) = re.findall(r'd="M([\d.]+),([\d.]+)h10m-5,0V([\d.]+)m', svg)[0]
    assert float(x) + 5 == middle[0] and float(low) - float(high) == pytest.approx(
        (bottom - top) / 5, abs=0.11
    )


# In a browser

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr --v=0 "
    "--virtual-time-budget=3000"
).split()
LOOK = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  images: [...document.images].map(i => i.complete && i.naturalWidth > 0),
  resources: performance.getEntriesByType("resource").map(r => r.name.slice(0, 99))
    .filter(name => !name.startsWith("data:")),
  hidden: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  background: getComputedStyle(document.body).backgroundColor,
}), "*"))</script></body>"""
PHONE = """<body><iframe src="looked.html" width="390" height="800"></iframe><script>
addEventListener("message", event => document.body.textContent = event.data)</script></body>"""


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess:
    """A page's elements in a browser, and what it logs."""
    profile = f"--user-data-dir={page.parent}/profile"
    command = [CHROMIUM, *FLAGS, *flags, profile, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium, which Debian has")
def test_a_browser_shows_the_page_on_a_phone_in_dark_and_light(trained, tmp_path):
    page = Path(shutil.copy(trained / "report.html", tmp_path))
    shown = browse(page)
    assert "CONSOLE" not in shown.stderr and "Surest mistakes" in shown.stdout

    text = re.sub("<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    (tmp_path / "looked.html").write_text(text.replace("</body>", LOOK), encoding="utf-8")
    (tmp_path / "phone.html").write_text(PHONE)
    backgrounds = []
    for scheme in ("1", "0"):
        shown = browse(tmp_path / "phone.html", f"--blink-settings=preferredColorScheme={scheme}")
        seen = json.loads(re.search(r"<body>(\{.*\})</body>", shown.stdout, re.DOTALL)[1])
        assert seen["images"] and all(seen["images"])
        assert (seen["resources"], seen["hidden"]) == ([], 0)
        backgrounds.append(seen["background"])
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]
