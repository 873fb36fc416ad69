"""Sweeps, base-to-new, tests on other data, tables: the protocols of few-shot research."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
from image_folders import draw_classes
from miniatures import draw_miniature
from scripts import SCRIPTS, SHORT, Result, assert_one_line, inside, save_clip, summary

import minidpt
from minidpt.data import batches, datasets
from minidpt.data import samples as data
from minidpt.data.layouts import LAYOUTS
from minidpt.runs import evaluation, results, tables
from minidpt.runs import folders as runs
from minidpt.runs.config import RunConfig, RunRecord, published_settings

NAMES = [layout.name for layout in LAYOUTS]
TRAINED, TEST_ONLY = NAMES[:11], NAMES[11:]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "little.pt")


@pytest.fixture(scope="module")
def guide(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("guide")
    for name in NAMES:
        draw_miniature(root, name)
    return root


def succeed(script: str, *arguments: object) -> Result:
    result = inside(script, *arguments)
    assert (result.status, result.err) == (0, "")
    return result


def read_csv(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: str | Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*.*")}


def test_every_data_set_is_trained_on_and_imagenets_relatives_are_tested_on(guide, clip):
    before = files(guide)
    result = succeed(
        "train.py", "--data", guide, "--dataset", *TRAINED, "--model", clip, "--out", "sweep",
        *SHORT, "--shots", 2, "--epochs", 1,
    )  # fmt: skip
    for name in TRAINED:
        dataset = datasets.open_dataset(guide, name)
        content = summary(f"sweep/{name}-dpt-2shots-seed1")
        assert content["dataset"] == name and content["classes"] == len(dataset.classnames)
        assert content["train_images"] == 2 * content["classes"]
        assert content["test_images"] == len(dataset.test)
        config = json.loads(Path(f"sweep/{name}-dpt-2shots-seed1/config.json").read_text())
        assert config["template"] == dataset.template
    assert "Mean of 11 data sets" in result.out and "Published means" in result.out
    assert Path("sweep/table.md").read_text(encoding="utf-8") in result.out

    run = "sweep/ImageNet-dpt-2shots-seed1"
    result = succeed("eval.py", "test", run, "--data", guide, "--dataset", *TEST_ONLY, "EuroSAT")
    for name in (*TEST_ONLY, "EuroSAT"):
        assert f"{run} on {name}: dpt accuracy" in result.out
    table = succeed("eval.py", "table", "sweep").out
    assert "Trained on one, tested on another" in table
    tested = [row["tested"] for row in read_csv("sweep/table.csv") if row["dataset"] == "ImageNet"]
    assert sorted(tested) == sorted(["ImageNet", *TEST_ONLY, "EuroSAT"])
    assert files(guide) == before


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    return draw_classes(folder, {"ox": 10, "gnu": 10, "owl": 10, "red fox": 10, "yak": 10})


@pytest.fixture(scope="module")
def sweep(pictures, clip, tmp_path_factory) -> tuple[Path, list, Result]:
    """Seven runs and their command. Only read them."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    command = ["--data", pictures, "--model", clip, *SHORT, "--epochs", 2,
               "--method", "zeroshot", "coop", "dpt", "--shots", 1, 3, "--seed", 0, 2]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        return folder, command, succeed("train.py", *command, "--out", folder)


def test_a_sweep_has_a_run_for_each_method_number_of_shots_and_seed(sweep):
    folder, _, result = sweep
    names = {f"pictures0-{method}-{shots}shots-seed{seed}"
             for method in ("coop", "dpt") for shots in (1, 3) for seed in (0, 2)}  # fmt: skip
    found = {path.parent.name.replace(path.parent.name.split("-")[0], "pictures0", 1)
             for path in folder.glob("*/summary.json")}  # fmt: skip
    assert found == names | {"pictures0-zeroshot"}
    assert "9 runs in" in result.out and "0 of them finished" in result.out
    assert (folder / "table.md").read_text(encoding="utf-8") in result.out


def test_a_run_of_a_sweep_is_the_run_that_one_would_get_alone(sweep, pictures, clip):
    (run,) = sweep[0].glob("*-dpt-3shots-seed2")
    succeed("train.py", "--data", pictures, "--model", clip, *SHORT, "--epochs", 2, "--shots", 3,
            "--seed", 2, "--out", "alone")  # fmt: skip
    for name in ("accuracy", "zero_shot_accuracy", "train_images", "tests"):
        assert summary("alone")[name] == summary(run)[name]
    ours, theirs = (
        torch.load(Path(folder) / "model.pt", weights_only=True)["learned"]
        for folder in ("alone", run)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_table_is_the_mean_and_deviation_over_seeds(sweep):
    folder, _, _ = sweep
    table = {(row["method"], row["shots"]): row for row in read_csv(folder / "table.csv")}
    assert set(table) == {("zeroshot", "0"), *((m, s) for m in ("coop", "dpt") for s in "13")}
    for method in ("coop", "dpt"):
        for shots in "13":
            runs = [summary(path) for path in folder.glob(f"*-{method}-{shots}shots-seed*")]
            accuracies = [run["accuracy"] for run in runs]
            row = table[method, shots]
            assert (row["seeds"], len(runs)) == ("2", 2)
            assert float(row["accuracy"]) == pytest.approx(fmean(accuracies))
            assert float(row["std"]) == pytest.approx(pstdev(accuracies))
            assert float(row["zero_shot_accuracy"]) == runs[0]["zero_shot_accuracy"]
            shown = f"{fmean(accuracies):.1f} ± {pstdev(accuracies):.1f}"
            lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
            assert any(line.startswith(f"| {method}") and shown in line for line in lines)


def test_a_stopped_sweep_goes_on_where_it_was_and_repeats_nothing(sweep, pictures):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    finished = sorted(path.parent for path in Path("again").glob("*/summary.json"))
    stopped, never_begun = finished[2], finished[5]
    (stopped / "summary.json").unlink()
    shutil.rmtree(never_begun)
    kept = [path for path in finished if path not in (stopped, never_begun)]
    before = {path: files(path) for path in kept}
    (stopped / "metrics.jsonl").write_text("of the stopped run")
    result = succeed("train.py", *command, "--out", "again")
    assert "9 runs in again, 7 of them finished" in result.out
    assert {path: files(path) for path in kept} == before
    for path in (stopped, never_begun):
        assert summary(path)["accuracy"] == summary(folder / path.name)["accuracy"]
    assert (stopped / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 2
    assert Path("again/table.csv").read_text() == (folder / "table.csv").read_text()

    before = files("again")
    result = succeed("train.py", *command, "--out", "again")
    assert "9 of them finished" in result.out and "CLIP" not in result.out.split("finished")[0]
    changed = {path for path, time in files("again").items() if before.get(path) != time}
    assert changed == {"again/table.md", "again/table.csv", "again/report.html"}


def test_a_sweep_can_grow(sweep, pictures, clip):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    more = [*command[: command.index("--seed")], "--seed", 0, 2, 5]
    assert "13 runs in again, 9 of them finished" in succeed(
        "train.py", *more, "--out", "again").out  # fmt: skip
    rows = read_csv("again/table.csv")
    assert {row["seeds"] for row in rows if row["method"] != "zeroshot"} == {"3"}


def test_a_sweep_with_other_settings_does_not_mix_with_what_is_there(sweep):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    before = files("again")
    result = inside("train.py", *command, "--epochs", 3, "--out", "again")
    assert_one_line(result, "train.py", "epochs 3", "with epochs 2: pass", "--out")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert_one_line(inside("train.py", *command, "--out", "mine"), "train.py", "mine", "--out")
    assert files("again") == before and len(files("mine")) == 1


def test_a_sweep_does_not_go_on_with_other_pictures_classes_or_weights(pictures, clip):
    own, weights = shutil.copytree(pictures, Path("own")), shutil.copy(clip, Path("own.pt"))
    command = ("--data", own, "--model", weights, *SHORT, "--epochs", 1, "--method", "coop",
               "zeroshot", "--out", "sweep")  # fmt: skip
    succeed("train.py", *command)
    config = json.loads(next(Path("sweep").glob("*-coop-*/config.json")).read_text())
    assert config["record"]["clip_fingerprint"] == minidpt.load(clip)[0].fingerprint()
    before = files("sweep")

    more = shutil.copy(own / "ox" / "image_0001.png", own / "ox" / "more.png")
    result = inside("train.py", *command)
    assert_one_line(result, "train.py", "the same data", "other data", "fingerprint", "--out")
    more.unlink()
    names = Path("names.txt")
    names.write_text("ox cow\n")
    named = (*command, "--classnames", names)
    assert_one_line(inside("train.py", *named), "train.py", "classnames")
    save_clip(weights, seed=1)
    result = inside("train.py", *command)
    assert_one_line(result, "train.py", "the same CLIP", "other CLIP", "fingerprint", "--out")
    assert files("sweep") == before

    shutil.copy(clip, weights)
    assert "2 of them finished" in succeed("train.py", *command).out
    succeed("train.py", *named[:-3], "named", *named[-2:])
    names.write_text("ox bull\n")  # the same file, other names
    result = inside("train.py", *named[:-3], "named", *named[-2:])
    assert_one_line(result, "train.py", "the same data", "fingerprint")


def test_runs_of_an_earlier_version_are_left_out_of_the_tables(sweep, monkeypatch):
    shutil.copytree(sweep[0], "again")
    (run,) = Path("again").glob("*-dpt-3shots-seed2")
    config = json.loads((run / "config.json").read_text())
    record = config.pop("record")
    (run / "config.json").write_text(json.dumps({**config, **record}))  # as 0.2 had it
    out = succeed("eval.py", "table", "again").out
    assert f"of an earlier version, so not in the tables: 1 ({run.name})" in out
    table = {(row["method"], row["shots"]): row for row in read_csv("again/table.csv")}
    assert (table["dpt", "3"]["seeds"], table["dpt", "1"]["seeds"]) == ("1", "2")
    result = inside("eval.py", "table", run)
    assert_one_line(result, "eval.py", "got 1 that are not finished or of an earlier version")
    assert_one_line(inside("eval.py", "report", run), "eval.py", "an earlier version", str(run))


def test_a_run_that_fails_is_named_and_the_others_of_the_sweep_go_on(pictures, clip):
    command = ("--data", pictures, "--model", clip, *SHORT, "--epochs", 3, "--warmup-epochs", 0,
               "--visual-lr", "1e38", "--method", "vpt", "coop", "--out", "sweep")  # fmt: skip
    result = inside("train.py", *command)
    first, last = result.err.splitlines()
    assert result.status == 2
    failed = f"{pictures.name}-vpt-3shots-seed1"
    assert first.startswith(f"train.py: error: {failed}: epoch ") and "the loss is" in first
    assert last == f"train.py: error: 1 of 2 runs failed: {failed}"
    assert [row["method"] for row in read_csv("sweep/table.csv")] == ["coop"]
    assert "[2/2]" in result.out and "| coop " in result.out
    again = inside("train.py", *command)
    assert "2 runs in sweep, 1 of them finished" in again.out and again.status == 2

    none = (*command[:-3], "--seed", 3, 4, "--out", "none")  # vpt alone
    result = inside("train.py", *none)
    assert result.err.splitlines()[-1].startswith("train.py: error: 2 of 2 runs failed: ")
    assert not Path("none/table.md").exists()  # there is no result


def test_a_picture_that_vanishes_stops_no_other_run_of_a_sweep(pictures, clip, monkeypatch):
    own = shutil.copytree(pictures, Path("own"))
    run_once, calls = SCRIPTS["train.py"].run_once, []

    def vanishing(planned, shared):
        calls.append(planned.name)
        if len(calls) == 1:
            raise FileNotFoundError("image own/gone.png: no such file")
        run_once(planned, shared)

    monkeypatch.setattr(SCRIPTS["train.py"], "run_once", vanishing)
    command = ("--data", own, "--model", clip, *SHORT, "--epochs", 1, "--method", "coop", "vpt",
               "--out", "sweep")  # fmt: skip
    result = inside("train.py", *command)
    assert result.status == 2 and [row["method"] for row in read_csv("sweep/table.csv")] == ["vpt"]
    assert (
        result.err.splitlines()[0]
        == f"train.py: error: {calls[0]}: image own/gone.png: no such file"
    )


def test_a_stop_at_any_moment_of_a_runs_beginning_leaves_a_run_to_begin_anew(monkeypatch):
    run, unlink = runs.RunFolder("run"), Path.unlink
    settings = RunConfig(epochs=3), RunRecord("c", "d", "cpu", "fp32", True)

    def stop(*_, **__):
        raise KeyboardInterrupt

    for moment in range(6):  # files to be removed
        run.create(*settings)
        for name in ("metrics.jsonl", "split.json", "model.pt", "transfer.json"):
            run.path(name).touch()
        run.write_json("summary.json", {"tests": {}})
        assert run.is_finished(*settings)
        steps = iter([unlink] * moment + [stop])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "unlink", lambda *args, **kw: next(steps)(*args, **kw))  # noqa: B023
            run.create(*settings)
        assert run.is_finished(*settings) == (moment == 0)  # and it is no error

    run.create(*settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.os, "replace", stop)
        run.create(*settings)
    assert not run.is_finished(*settings)


def test_a_run_of_another_precision_says_which_option_goes_on_with_it(pictures, clip):
    command = ("--data", pictures, "--model", clip, *SHORT, "--epochs", 1, "--method", "coop",
               "vpt", "--out", "sweep")  # fmt: skip
    succeed("train.py", *command)
    result = inside("train.py", *command, "--precision", "bf16")
    assert_one_line(result, "train.py", "precision bf16", "pass --precision fp32, or pass another")
    result = inside("train.py", *command, "--no-quick-gelu")
    assert_one_line(result, "train.py", "quick_gelu False", "with quick_gelu None: pass another")


def test_a_damaged_result_stops_a_sweep_before_its_first_run(sweep):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    broken, lost = sorted(Path("again").glob("*/summary.json"))[-2:]
    broken.write_text("{}")
    lost.unlink()
    result = inside("train.py", *command, "--out", "again")
    assert_one_line(result, "train.py", str(broken), "tests")
    assert not lost.exists()


def test_a_folder_of_pictures_stands_for_its_data_set_whose_folder_is_only_read(
    guide, clip, monkeypatch
):
    folder = shutil.copytree(guide / "caltech-101", "caltech-101")
    monkeypatch.chdir(folder)
    before = files(".")
    result = inside("train.py", "--data", "101_ObjectCategories", "--model", clip, *SHORT)
    assert_one_line(result, "train.py", "output folder runs", "outside the data folder")
    assert files(".") == before


def test_the_folder_around_a_folder_of_pictures_is_known_by_the_layout(tmp_path):
    def around(name: str, root: str) -> list[str]:
        path = tmp_path / root
        dataset = data.Dataset(name, path, ["a", "b"], "{}", [], [], [], "")
        return [str(folder.relative_to(tmp_path)) for folder in datasets.folders_of(dataset)[1:]]

    assert around("DescribableTextures", "data/dtd/dtd/images") == ["data/dtd"]  # torchvision's
    assert around("DescribableTextures", "data/dtd/images") == ["data/dtd"]
    assert around("DescribableTextures", "dtd/images") == ["dtd"]
    assert around("EuroSAT", "eurosat/2750") == ["eurosat"]
    assert around("EuroSAT", "eurosat") == []
    assert around("mine", "project/images") == []


def test_a_sweep_decodes_test_pictures_once_and_runs_clip_on_them_once(pictures, clip, monkeypatch):
    decoded, open_image = [], batches.open_image
    counting = lambda path, level: decoded.append(path) or open_image(path, level)  # noqa: E731
    monkeypatch.setattr(batches, "open_image", counting)
    command = ("--data", pictures, "--model", clip, *SHORT, "--epochs", 1, "--method", "vpt",
               "coop", "dpt", "--seed", 1, 2, "--out", "sweep")  # fmt: skip
    succeed("train.py", *command)
    assert len(decoded) == len(set(decoded))


def test_base_to_new_tests_both_halves_and_their_harmonic_mean(pictures, clip):
    result = succeed(
        "train.py", "--data", pictures, "--model", clip, *SHORT, "--classes", "base",
        "--method", "zeroshot", "dpt", "--seed", 1, 2, "--out", "sweep",
    )  # fmt: skip
    (run,) = Path("sweep").glob("*-dpt-3shots-seed1-base")
    content = summary(run)
    assert content["classes"] == 3 and content["train_images"] == 9
    base, new = content["tests"].values()
    assert (base["test_images"], new["test_images"]) == (9, 6)
    assert [name.split(", ")[1] for name in content["tests"]] == ["base classes", "new classes"]
    mean = 2 * base["accuracy"] * new["accuracy"] / ((base["accuracy"] + new["accuracy"]) or 1)
    assert f"harmonic mean {mean:.2f} %" in result.out
    assert "Base to new" in (Path("sweep") / "table.md").read_text(encoding="utf-8")
    rows = read_csv("sweep/table.csv")
    both = [row for row in rows if "harmonic mean" in row["tested"] and row["method"] == "dpt"]
    parts = [row for row in rows if row["method"] == "dpt" and row not in both]
    first, second = (float(row["accuracy"]) for row in parts)
    assert float(both[0]["accuracy"]) == pytest.approx(tables.harmonic_mean(first, second))

    again = succeed("eval.py", "test", run, "--classes", "new").out  # the same once more
    assert (
        f"dpt accuracy {new['accuracy']:.2f} %, zero-shot {new['zero_shot_accuracy']:.2f} %"
        in again
    )
    again = succeed("eval.py", "test", run).out
    assert f"dpt accuracy {base['accuracy']:.2f} %" in again


@pytest.mark.parametrize("method", ["coop", "vpt", "vlp", "dpt"])
def test_learned_prompts_serve_other_classes(clip, method):
    loaded, _ = minidpt.load(clip)
    torch.manual_seed(0)
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=4)
    model = minidpt.build_model(loaded, ["ox", "owl", "gnu"], "a {}.", config)
    other = model.for_classes(["red fox", "yak", "cat", "ant"], "{} texture.")
    assert (other.classnames[1], other.template, other.clip) == ("yak", "{} texture.", loaded)
    assert model.classnames == ["ox", "owl", "gnu"] and not other.training
    images = torch.randn(2, 3, loaded.visual.resolution, loaded.visual.resolution)
    assert other(images).logits.shape == (2, 4)
    ours, theirs = other.prompt_state_dict(), model.prompt_state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if not name.endswith("classifier.weight"):
            assert torch.equal(value, theirs[name]) and value is not theirs[name]
    # the classifier is not used: other numbers in it change nothing
    before = other(images).logits
    with torch.no_grad():
        for layer in other.class_aware:
            layer.classifier.weight.fill_(7)
    assert torch.equal(other(images).logits, before)
    # the same classes in another order: the same logits in that order
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=2)
    model = minidpt.build_model(loaded, ["ox", "owl", "gnu"], "a {}.", config).eval()
    turned = model.for_classes(["gnu", "ox", "owl"])
    torch.testing.assert_close(turned(images).logits, model(images).logits[:, [2, 0, 1]])


def test_contexts_of_classes_cannot_serve_others(clip):
    config = minidpt.PromptConfig(method="coop", n_ctx=3, csc=True)
    model = minidpt.build_model(minidpt.load(clip)[0], ["ox", "owl"], "a {}.", config)
    with pytest.raises(ValueError, match="csc"):
        model.for_classes(["ox", "gnu"])
    same = model.for_classes(["ox", "owl"])
    assert torch.equal(same.text_prompts.ctx, model.text_prompts.ctx)


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("train.py", ["--dataset", "Caltech102"], ["Caltech102", "Caltech101"]),
        ("train.py", ["--classes", "old"], ["old", "base"]),
        ("train.py", ["--classes", "base", "--csc"], ["--csc"]),
        ("train.py", ["--shots", "1", "0"], ["--shots", "at least 1"]),
        ("train.py", ["--seed", "1", "-1"], ["--seed", "at least 0"]),
        ("train.py", ["--classnames", "none.txt"], ["none.txt"]),
        ("eval.py", ["table", "empty"], ["empty", "finished runs"]),
    ],
)
def test_bad_protocols_are_one_line(pictures, clip, script, options, words):
    Path("empty").mkdir()
    given = ["--data", pictures, "--model", clip, "--out", "run"] if script == "train.py" else []
    assert_one_line(inside(script, *given, *options), script, *words)
    assert not Path("run").exists()


def test_a_damaged_result_is_named(sweep):
    shutil.copytree(sweep[0], "again")
    path = next(Path("again").glob("*/summary.json"))
    path.write_text("{}")
    assert_one_line(inside("eval.py", "table", "again"), "eval.py", str(path))
    shutil.copy(sweep[0] / path.relative_to("again"), path)
    whole = json.loads(path.read_text())
    changes = [{"shots": True}, {"method": "x"}, {"model": 5}]
    changes += [{"dataset": "../x"}, {"tests": {"x": {"accuracy": 101, "zero_shot_accuracy": 1}}}]
    for change in changes:
        path.write_text(json.dumps(whole | change))
        assert_one_line(inside("eval.py", "table", "again"), "eval.py", str(path.parent))
    path.write_text(json.dumps({name: value for name, value in whole.items() if name != "shots"}))
    assert_one_line(inside("eval.py", "table", "again"), "eval.py", str(path), "'shots' (int)")
    path.write_text(json.dumps(whole))
    for content in ("5", '{"EuroSAT": 5}', '{"x": {"accuracy": NaN, "zero_shot_accuracy": 1}}'):
        path.with_name("transfer.json").write_text(content)
        result = inside("eval.py", "table", "again")
        assert_one_line(result, "eval.py", str(path.parent), "expected")


def test_runs_of_other_settings_and_of_the_same_seed_are_kept_apart(sweep, pictures, clip):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    (run,) = Path("again").glob("*-dpt-3shots-seed2")
    shutil.copytree(run, "again/repeated")
    content = summary(run)
    result = content["tests"][content["dataset"]]
    content["accuracy"] = result["accuracy"] = 12.5
    Path("again/repeated/summary.json").write_text(json.dumps(content))  # finished last: it counts
    shutil.copytree(run, "again/longer")
    config = json.loads(Path("again/longer/config.json").read_text())
    Path("again/longer/config.json").write_text(json.dumps({**config, "epochs": 50}))
    text = tables.write_tables("again")
    rows = [
        row for row in read_csv("again/table.csv") if (row["method"], row["shots"]) == ("dpt", "3")
    ]
    usual, longer = sorted(rows, key=lambda row: row["variant"])
    assert (usual["variant"], longer["variant"]) == ("epochs 2", "epochs 50")
    assert (usual["seeds"], longer["seeds"]) == ("2", "1")
    (other,) = Path("again").glob("*-dpt-3shots-seed0")
    assert float(usual["accuracy"]) == pytest.approx((summary(other)["accuracy"] + 12.5) / 2)
    assert float(longer["accuracy"]) == summary(folder / run.name)["accuracy"]
    assert "dpt (epochs 50)" in text and "| coop " in text


def test_seeds_in_another_order_and_one_run_more_are_the_same_sweep(sweep):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    turned = [*command[: command.index("--seed")], "--seed", 2, 0]
    result = succeed("train.py", *turned, "--epochs", 2, "--out", "again")
    assert "9 runs in again, 9 of them finished" in result.out
    one = [*command[: command.index("--method")], "--method", "vpt", "--shots", 1]
    result = succeed("train.py", *one, "--out", "again")
    assert "1 run in again, 0 of them finished" in result.out
    assert {row["method"] for row in read_csv("again/table.csv")} == {
        "zeroshot",
        "coop",
        "dpt",
        "vpt",
    }
    # zero-shot CLIP does not depend on how long others learn
    plain = [*command[: command.index("--method")], "--method", "zeroshot", "--epochs", 7]
    assert "1 of them finished" in succeed("train.py", *plain, "--out", "again").out


def test_only_runs_on_base_classes_are_base_to_new(pictures, clip):
    command = ("--data", pictures, "--model", clip, *SHORT, "--epochs", 1)
    succeed("train.py", *command, "--out", "runs/all")
    succeed("train.py", *command, "--classes", "base", "--out", "runs/base")
    tested = summary("runs/base")["tests"]
    for classes in ("base", "new"):
        succeed("eval.py", "test", "runs/all", "runs/base", "--classes", classes)
    assert not Path("runs/base/transfer.json").exists()  # train.py has tested that already
    assert set(json.loads(Path("runs/all/transfer.json").read_text())) == set(tested)
    succeed("eval.py", "test", "runs/base", "--data", pictures)
    table = succeed("eval.py", "table", "runs").out
    (heading,) = (line for line in table.splitlines() if line.startswith("**Base to new"))
    block = table.split(heading)[1].split("**")[0]
    base, new = (test["accuracy"] for test in tested.values())
    (line,) = (line for line in block.splitlines() if " dpt " in line)
    assert f"{base:.1f}" in line and f"{new:.1f}" in line
    crossed = table.split("Trained on one, tested on another")[1]
    assert crossed.count("\n| pictures") == 3  # all on base, all on new, base on all


def test_data_sets_of_one_name_are_kept_apart(pictures, clip):
    other = draw_classes(Path("other") / pictures.name, {"ant": 4, "bee": 4})
    succeed("train.py", "--data", pictures, "--model", clip, *SHORT, "--epochs", 1, "--out", "run")
    assert summary("run")["tests"].keys() == {pictures.name}
    succeed("eval.py", "test", "run", "--data", other)
    succeed("eval.py", "test", "run", "--data", pictures)  # its own test: not noted
    noted = json.loads(Path("run/transfer.json").read_text())
    assert list(noted) == [f"{pictures.name}, tested in {other.resolve()}"]
    (test,) = noted.values()
    assert (test["tested"], test["test_images"]) == (f"{pictures.name} in {other.resolve()}", 2)
    rows = read_csv(succeed("eval.py", "table", "run").out and "run/table.csv")
    own = [row for row in rows if row["tested"] == pictures.name]
    assert len(rows) == 2 and float(own[0]["accuracy"]) == summary("run")["accuracy"]


def test_several_runs_are_tested_on_the_classes_of_their_own_data(pictures, clip, monkeypatch):
    other = draw_classes(Path("four"), {"ant": 4, "bee": 4, "cat": 4, "dog": 4})
    command = ("--model", clip, *SHORT, "--epochs", 1)
    succeed("train.py", "--data", pictures, *command, "--template", "my {}.", "--out", "a")
    succeed("train.py", "--data", other, *command, "--out", "b")
    opened = []
    monkeypatch.setattr(
        evaluation.EvalSet, "__init__",
        lambda self, items, *args, init=evaluation.EvalSet.__init__, **kwargs:
            opened.append(len(items)) or init(self, items, *args, **kwargs),
    )  # fmt: skip
    out = succeed("eval.py", "test", "a", "b", "a", "--classes", "new").out
    assert opened == [6, 2]  # pictures of each data set are decoded once
    assert out.count("a on pictures") == 2 and out.count("b on four, new classes") == 1
    notes = [json.loads(Path(run, "transfer.json").read_text()) for run in "ab"]
    (first,), (second,) = (note.values() for note in notes)
    assert (first["template"], second["template"]) == ("my {}.", "a photo of a {}.")
    out = succeed("eval.py", "test", "a", "b").out
    assert f"a: dpt accuracy {summary('a')['accuracy']:.2f} %" in out
    assert f"b: dpt accuracy {summary('b')['accuracy']:.2f} %" in out


def test_runs_of_several_clips_are_refused_but_copies_of_one_are_not(pictures, clip):
    copy, other = shutil.copy(clip, "same.pt"), save_clip(Path("other.pt"), seed=1)
    for run, model in (("a", clip), ("b", copy), ("c", other)):
        succeed("train.py", "--data", pictures, *SHORT, "--epochs", 1, "--model", model, "--out", run)
    assert "b: dpt accuracy" in succeed("eval.py", "test", "a", "b").out
    assert_one_line(inside("eval.py", "test", "a", "c"), "eval.py", "one CLIP", "one by one")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "EuroSAT", "ImageNetV2"], ["ImageNetV2", "only a test set"]),
        (["--dataset", "EuroSAT", "eurosat", "Food102"], ["Food102"]),
        (["--dataset", "EuroSAT", "--template", "no class"], ["no class"]),
    ],
)
def test_a_sweep_that_cannot_end_does_not_begin(guide, options, words):
    result = inside("train.py", "--data", guide, *options, "--model", "none.pt", "--out", "sweep")
    assert_one_line(result, "train.py", *words)  # before CLIP was looked for
    assert not Path("sweep").exists()


def test_a_data_set_that_is_named_twice_is_trained_on_once(guide, clip):
    command = ("--data", guide, "--dataset", "EuroSAT", "eurosat", "--model", clip)
    result = succeed("train.py", *command, "--method", "zeroshot", "--out", "run")
    assert summary("run")["dataset"] == "EuroSAT" and "runs in" not in result.out


def test_the_mean_over_data_sets_is_taken_for_each_seed():
    def row(dataset: str, accuracies: dict[int, float]) -> results.Row:
        return results.Row(dataset, dataset, dataset, "tiny", "dpt", 1, "", 50.0, accuracies)

    rows = [row("EuroSAT", {1: 10.0, 2: 30.0, 3: 99.0}), row("DTD", {1: 30.0, 2: 10.0})]
    table = tables.markdown(rows)
    mean = table.split("Mean of 2 data sets")[1].split("**")[1]
    assert "| dpt       | 20.0 ± 0.0 |" in mean  # one goes up where the other goes down


def result(dataset="DTD", method="dpt", seed=1, zero_shot=50.0, accuracy=60.0, tested=None, **more):
    tested = tested or dataset
    return results.Row(
        dataset, dataset, tested, "tiny", method, 16, "", zero_shot, {seed: accuracy},
        {"epochs": 100} | more,
    )  # fmt: skip


def test_a_setting_that_varies_on_one_data_set_does_not_cost_the_mean_over_all():
    rows = results.summarise([result("DTD"), result("Pets"), result("Pets", epochs=200)])
    assert {(row.dataset, row.variant) for row in rows} == {
        ("DTD", "epochs 100"), ("Pets", "epochs 100"), ("Pets", "epochs 200"),
    }  # fmt: skip
    mean = tables.markdown(rows).split("Mean of 2 data sets")[1].split("**")[1]
    assert "dpt (epochs 100) | 60.0" in mean and "epochs 200" not in mean


@pytest.mark.parametrize(
    ("setting", "shown"),
    [("data_fingerprint", "data fingerprint"), ("clip_fingerprint", "CLIP fingerprint")],
)
def test_runs_on_other_pictures_or_of_other_weights_are_not_pooled(setting, shown):
    first, second = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    rows = results.summarise(
        [
            result(**{setting: first}),
            result(**{setting: second}, seed=2, accuracy=10.0),
            result(**{setting: second}, seed=3, accuracy=20.0),
        ]
    )
    assert {row.variant: row.accuracy for row in rows} == {
        f"{shown} 01234567": 60.0, f"{shown} fedcba98": 15.0,
    }  # fmt: skip


def test_only_runs_of_like_settings_are_averaged_over_data_sets():
    rows = results.summarise([result("DTD", epochs=8), result("Pets", epochs=4)])
    assert [row.variant for row in rows] == ["epochs 8", "epochs 4"]
    assert "dpt" not in tables.markdown(rows).split("Mean of 2 data sets")[-1].split("**DTD")[0]
    # each data set's published numbers of epochs and of warm-up are alike: ImageNet has its own
    usual = [result("DTD", "vlp", warmup_epochs=10),
             result("ImageNet", "vlp", warmup_epochs=1, accuracy=80.0)]  # fmt: skip
    rows = results.summarise(usual)
    assert [row.variant for row in rows] == ["", ""]
    assert "vlp       | 70.0" in tables.markdown(rows).split("Mean of 2 data sets")[1]
    rows = results.summarise([usual[0], usual[1]._replace(dataset="Pets")])
    assert [row.variant for row in rows] == ["warmup_epochs 10", "warmup_epochs 1"]


def test_options_that_are_not_published_are_said_of_all_rows_or_by_name():
    short = dict(epochs=6, batch_size=32, csc=True, n_ctx=16)
    said = tables.caption(results.summarise([result(**short), result(method="coop", **short)]))
    assert said == "Accuracy in percent, one seed. Not as published: --epochs 6 --csc."
    usual = result(method="coop", epochs=200, csc=False, n_ctx=16)
    said = tables.caption(results.summarise([result(**short), usual, result(method="zeroshot")]))
    assert said.endswith("one seed. Not as published (dpt): --epochs 6 --csc.")
    # by shots
    rows = [result(method="coop", epochs=50)._replace(shots=n) for n in (1, 16)]
    said = tables.caption(results.summarise(rows))
    assert said.endswith("one seed. Not as published (coop): --epochs 50.")
    both = [result(**short, seed=1), result(**short, seed=2), result(**{**short, "epochs": 100})]
    rows = results.summarise(both)  # in the row's name it is said already
    assert {row.label for row in rows} == {"dpt (epochs 6)", "dpt (epochs 100)"}
    assert tables.caption(rows) == (
        "Accuracy in percent, mean ± standard deviation over seeds (1 to 2). "
        "Not as published: --csc."
    )


def test_published_options_are_the_defaults_of_train_py():
    usual = published_settings("dpt", 16, "DTD")
    assert usual.pop("warmup_epochs") == 10 and usual.pop("epochs") == 100
    assert usual == {name: RunConfig().to_dict()[name] for name in usual} and len(usual) == 13


def test_unfinished_runs_are_counted_below_the_tables(sweep):
    shutil.copytree(sweep[0], "again")
    stopped = sorted(path.parent for path in Path("again").glob("*/summary.json"))[:2]
    for run in stopped:
        (run / "summary.json").unlink()
    out = succeed("eval.py", "table", "again").out
    names = ", ".join(run.name for run in stopped)
    about = "that are not finished or of an earlier version"
    assert out.endswith(f"\nRuns {about}, so not in the tables: 2 ({names}).\n")
    assert Path("again/table.md").read_text(encoding="utf-8") == out
    for path in Path("again").glob("*/summary.json"):
        path.unlink()
    result = inside("eval.py", "table", "again")
    assert_one_line(result, "eval.py", "finished runs", "got 9", "not finished")


def test_what_is_no_run_is_left_out_of_the_tables(sweep):
    shutil.copytree(sweep[0], "again")
    out = succeed("eval.py", "table", "again").out
    foreign = Path("again/a clip")  # the first in any order
    foreign.mkdir()
    for content in ('{"model_type": "clip"}', "[1]", "{ // no JSON"):
        (foreign / "config.json").write_text(content)
        assert succeed("eval.py", "table", "again").out == out
        (foreign / "summary.json").write_text("{}")
        assert succeed("eval.py", "table", "again").out == out
        (foreign / "summary.json").unlink()
        result = inside("eval.py", "test", "again")
        assert_one_line(result, "eval.py", "a run in it, such as again/")
        assert "a clip" not in result.err
    damaged = next(Path("again").glob("*-dpt-*/config.json"))
    damaged.write_text("{")
    assert_one_line(inside("eval.py", "table", "again"), "eval.py", str(damaged), "JSON")


def test_the_csv_has_a_value_for_each_seed(tmp_path):
    rows = results.summarise([result(seed=1), result(seed=3, accuracy=70.0),
                              result("Pets", seed=2, accuracy=5.5)])  # fmt: skip
    tables.write_csv(rows, tmp_path / "table.csv")
    table = read_csv(tmp_path / "table.csv")
    found = [[row[f"seed {seed}"] for seed in (1, 2, 3)] for row in table]
    assert found == [["60.0", "", "70.0"], ["", "5.5", ""]]
    assert [(row["seeds"], row["accuracy"]) for row in table] == [("2", "65.0"), ("1", "5.5")]


def test_the_csv_has_a_harmonic_mean_for_each_seed_of_both_halves(tmp_path):
    halves = {"base": {1: 60.0, 2: 80.0, 3: 9.0}, "new": {1: 30.0, 2: 20.0}}
    rows = [
        results.Row("DTD", "DTD, base classes", f"DTD, {half} classes", "tiny", "dpt", 16, "", 50.0,
                    accuracies)
        for half, accuracies in halves.items()
    ]  # fmt: skip
    tables.write_csv(rows, tmp_path / "table.csv")
    mean = read_csv(tmp_path / "table.csv")[2]
    assert mean["tested"] == "DTD, harmonic mean of base and new" and mean["seeds"] == "2"
    assert [mean[f"seed {seed}"] for seed in (1, 2, 3)] == ["40.0", "32.0", ""]


def test_names_in_tables_are_no_formulas_no_columns_and_no_control_characters(tmp_path):
    rows = results.summarise([result("=1+1"), result("a|b", tested="@x\x1b[31m\ny")])
    tables.write_csv(rows, tmp_path / "table.csv")
    assert [row["dataset"] for row in read_csv(tmp_path / "table.csv")] == ["'=1+1", "a|b"]
    assert read_csv(tmp_path / "table.csv")[1]["tested"].startswith("'@x")
    table = tables.markdown(rows)
    assert "a\\|b" in table and "\x1b" not in table and "@x\\x1b[31m y" in table


def test_zero_shot_accuracies_of_unequal_settings_are_not_averaged():
    asked = {"a {}.": 40.0, "my {}.": 50.0}
    rows = results.summarise(
        result(template=template, zero_shot=zero_shot) for template, zero_shot in asked.items()
    )
    table = tables.markdown(rows)
    assert "zero-shot (template a {}.)  | 40.0" in table
    assert "zero-shot (template my {}.) | 50.0" in table


def test_runs_on_the_new_classes_are_in_the_table():
    row = results.summarise([result()])[0]
    only_new = row._replace(trained="DTD, new classes", tested="DTD, new classes")
    table = tables.markdown([row, only_new])
    assert "**DTD, new classes, CLIP tiny**" in table and "Mean of" not in table


def test_tests_on_other_pictures_or_by_another_template_are_kept_apart(pictures, clip):
    others = [draw_classes(Path(name) / "pets", {"ant": 4, "bee": 4}) for name in "xy"]
    for seed in (1, 2):
        succeed("train.py", "--data", pictures, "--model", clip, *SHORT, "--epochs", 1,
                "--seed", seed, "--out", f"runs/{seed}")  # fmt: skip
    succeed("eval.py", "test", "runs/1", "runs/2", "--data", others[0])
    rows = read_csv(succeed("eval.py", "table", "runs").out and "runs/table.csv")
    assert [row["seeds"] for row in rows if row["tested"] == "pets"] == ["2"]
    succeed("eval.py", "test", "runs/1", "--data", others[0], "--template", "my {}.")
    rows = read_csv(succeed("eval.py", "table", "runs").out and "runs/table.csv")
    variants = [row["variant"] for row in rows if row["tested"] == "pets"]
    assert sorted(variants) == ["", "tested by my {}."]
    Path("runs/1/transfer.json").unlink()
    succeed("eval.py", "test", "runs/1", "--data", others[1])
    rows = read_csv(succeed("eval.py", "table", "runs").out and "runs/table.csv")
    variants = [row["variant"] for row in rows if row["tested"] == "pets"]
    assert sorted(variants) == [f"tested in {other.resolve()}" for other in others]


def test_a_test_by_other_settings_does_not_replace_an_earlier_one(pictures, clip):
    other = draw_classes(Path("x") / "pets", {"ant": 4, "bee": 4})
    succeed("train.py", "--data", pictures, "--model", clip, *SHORT, "--epochs", 1, "--out", "run")
    by = [[], ["--template", "my {}."], ["--precision", "bf16"]]
    for data_folder in (other, pictures):
        for options in (*by, by[1]):  # the second once more: it is the same test
            succeed("eval.py", "test", "run", "--data", data_folder, *options)
    noted = json.loads(Path("run/transfer.json").read_text())
    assert [entry["tested"] for entry in noted.values()] == ["pets"] * 3 + [pictures.name] * 2
    rows = read_csv(succeed("eval.py", "table", ".").out and "table.csv")
    for tested in ("pets", pictures.name):
        variants = [row["variant"] for row in rows if row["tested"] == tested]
        assert sorted(variants) == ["", "tested by my {}.", "tested in precision bf16"]
    (own,) = (row for row in rows if (row["tested"], row["variant"]) == (pictures.name, ""))
    assert float(own["accuracy"]) == summary("run")["accuracy"]


def test_test_images_that_were_trained_on_are_counted(pictures, clip):
    succeed("train.py", "--data", pictures, "--model", clip, *SHORT, "--epochs", 1, "--out", "a")
    assert "trained on" not in succeed("eval.py", "test", "a").out
    split = json.loads(Path("a/split.json").read_text())
    Path("linked").symlink_to(pictures)
    lines = ["path,label,split"]  # test on what was trained on, but for the first two classes
    for file, label, name in split["train"]:
        lines.append(f"linked/{file},{name},{'train' if label < 2 else 'test'}")
    lines += [f"linked/{file},{name},train" for file, _, name in split["test"]]
    Path("labels.csv").write_text("\n".join(lines))
    out = succeed("eval.py", "test", "a", "--data", "labels.csv").out
    assert "note: 9 of the test images were trained on\n" in out  # 3 shots of 3 classes
    shutil.copytree("a", "b")
    out = succeed("eval.py", "test", "a", "b", "--data", "labels.csv").out
    assert "note: b: 9 of the test images were trained on\n" in out


def test_notes_about_other_data_are_printed(pictures, clip):
    succeed("train.py", "--data", pictures, "--model", clip, *SHORT, "--epochs", 1, "--out", "run")
    other = draw_classes(Path("other"), {"ant": 4, "bee": 1})
    out = succeed("eval.py", "test", "run", "--data", other).out
    assert "note: class 'bee' has no test image\n" in out
