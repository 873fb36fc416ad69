"""Tables of what runs have given: what is averaged, and what is told apart."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from helpers.run_command import assert_one_line, read_summary, run_command
from helpers.short_runs import read_csv, run_checked

from minidpt.runs import results, tables
from minidpt.runs.config import RunConfig, published_settings


def test_the_table_is_the_mean_and_deviation_over_seeds(sweep):
    folder, _, _ = sweep
    table = {(row["method"], row["shots"]): row for row in read_csv(folder / "table.csv")}
    assert set(table) == {("zeroshot", ""), *((m, s) for m in ("coop", "dpt") for s in "13")}
    names = {"coop": "CoOp", "dpt": "DPT"}
    for method in names:
        for shots in "13":
            runs = [read_summary(path) for path in folder.glob(f"*-{method}-{shots}shots-seed*")]
            accuracies = [run["accuracy"] for run in runs]
            row = table[method, shots]
            assert (row["seeds"], len(runs)) == ("2", 2)
            assert float(row["accuracy"]) == pytest.approx(fmean(accuracies))
            assert float(row["std"]) == pytest.approx(pstdev(accuracies))
            assert float(row["zero_shot_accuracy"]) == runs[0]["zero_shot_accuracy"]
            shown = f"{fmean(accuracies):.1f} ± {pstdev(accuracies):.1f}"
            lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
            assert any(f"| {names[method]} " in line and shown in line for line in lines)


def make_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("summary.json", "{}", "summary.json: expected an entry"),
        ("summary.json", "", "summary.json: expected JSON"),
        ("summary.json", {"shots": True}, "'shots' (int)"),
        ("summary.json", {"method": "x"}, "of a known method"),
        ("summary.json", {"shots": -1}, "-1 of 'dpt'"),
        ("summary.json", {"notes": "a"}, "'notes' (list | None)"),
        ("summary.json", {"model": 5}, "'model' (str)"),
        ("summary.json", {"dataset": "../x"}, "'../x'"),
        ("summary.json", {"tests": {"x": {"accuracy": 101, "zero_shot_accuracy": 1}}}, "101"),
        ("summary.json", os.mkfifo, "summary.json: expected a file, got a pipe"),
        ("config.json", "{", "config.json: expected JSON"),
        ("config.json", '{"epochs": 2}', "config.json: expected the settings of a run of minidpt"),
        ("config.json", os.mkfifo, "config.json: expected a file, got a pipe"),
        ("config.json", os.mkdir, "config.json: expected a file, got a folder"),
        ("config.json", make_link_loop, "config.json: expected a file, got a broken link"),
        ("transfer.json", "5", "transfer.json: expected named entries"),
        ("transfer.json", '{"EuroSAT": 5}', "test 'EuroSAT'"),
        ("transfer.json", '{"x": {"accuracy": NaN, "zero_shot_accuracy": 1}}', "no finite"),
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_in_the_table(sweep, file, damage, words):
    for name in ("*-coop-3shots-seed0", "*-dpt-3shots-seed2"):
        (run,) = sweep[0].glob(name)
        shutil.copytree(run, f"again/{run.name}")
    path = Path("again", run.name, file)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    if callable(damage):
        damage(path)
    else:
        path.write_text(damage if isinstance(damage, str) else json.dumps(content | damage))
    out = run_checked("eval.py", "table", "again").out
    left_out = out.split("Runs left out of the tables: ")[1]
    assert left_out.startswith(str(path.parent)) and words in left_out
    assert "| CoOp" in out and "| DPT" not in out
    result = run_command("eval.py", "table", path.parent)
    assert_one_line(result, "eval.py", "expected finished runs in it, got", words)


def test_runs_of_other_settings_and_of_the_same_seed_are_kept_apart(sweep, images, clip):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    (run,) = Path("again").glob("*-dpt-3shots-seed2")
    shutil.copytree(run, "again/repeated")
    content = read_summary(run)
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
    assert float(usual["accuracy"]) == pytest.approx((read_summary(other)["accuracy"] + 12.5) / 2)
    assert float(longer["accuracy"]) == read_summary(folder / run.name)["accuracy"]
    assert "DPT (epochs 50)" in text and "| CoOp " in text


def result(dataset="DTD", method="dpt", seed=1, zero_shot=50.0, accuracy=60.0, **more):
    """Return the row of one run; of settings all but those of the method's training are given."""
    fields = {"trained": dataset, "tested": dataset, "model": "tiny", "shots": 16,
              "fingerprint": "f"}  # fmt: skip
    fields |= {name: more.pop(name) for name in [*more] if name in results.Row.__annotations__}
    metrics = {seed: {"zero_shot_accuracy": zero_shot, "accuracy": accuracy}}
    return results.Row(
        dataset, method=method, **{"metrics": metrics, "settings": {"epochs": 100} | more, **fields}
    )


def markdown(*rows: results.Row) -> str:
    return tables.markdown(results.summarise(rows))


def lines_of(text: str, title: str) -> list[list[str]]:
    """Return the cells below the heads of a table, by line."""
    block = text.split(f"**{title}**")[1].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block[2:]]


def test_the_mean_over_data_sets_is_taken_for_each_seed():
    rows = [result("EuroSAT", seed=n, accuracy=a) for n, a in ((1, 10.0), (2, 30.0), (3, 99.0))]
    rows += [result("DTD", seed=n, accuracy=a) for n, a in ((1, 30.0), (2, 10.0))]
    text = markdown(*rows)
    mean = lines_of(text, "Mean of 2 data sets, CLIP tiny")
    assert mean == [["zero-shot CLIP", "**50.0**"], ["DPT", "20.0 ± 0.0 (-30.0)"]]  # up and down
    assert "A mean of data sets averages the seeds that all of them have, 2 of up to 3." in text
    assert "the seeds that all of them have.\n" in markdown(*rows[:2], *rows[3:])


def test_what_a_mean_lacks_is_named_beside_it():
    rows = [
        result(name, method) for name in ("DTD", "Pets", "EuroSAT") for method in ("vpt", "dpt")
    ]
    text = markdown(*(row for row in rows if (row.dataset, row.method) != ("Pets", "vpt")))
    mean = lines_of(text, "Mean of 3 data sets, CLIP tiny")
    assert mean[1:] == [["VPT [1]", "–"], ["DPT", "**60.0 (+10.0)**"]]
    assert text.endswith("\n\n1. no mean: no result on Pets\n")
    text = markdown(result("DTD", seed=1), result("Pets", seed=2))
    assert "| DPT [1] " in text and text.endswith("\n1. no mean: no seed that all data sets have\n")


def test_data_sets_of_one_name_have_a_heading_each_and_a_mean(tmp_path):
    first, second = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    rows = results.summarise([
        result("pets", accuracy=60.0, zero_shot=40.0, folder="/x/pets", fingerprint=first),
        result("pets", accuracy=80.0, zero_shot=70.0, folder="/y/pets", fingerprint=second),
    ])  # fmt: skip
    text = tables.markdown(rows)
    assert "**pets, CLIP tiny** [1]\n" in text and "**pets, CLIP tiny** [2]\n" in text
    assert lines_of(text, "Mean of 2 data sets, CLIP tiny")[1] == ["DPT", "**70.0 (+15.0)**"]
    assert lines_of(text, "pets, CLIP tiny")[0] == ["zero-shot CLIP", "40.0"]
    assert text.endswith("1. data in /x/pets (fingerprint 01234567)\n"
                         "2. data in /y/pets (fingerprint fedcba98)\n")  # fmt: skip
    tables.write_csv(rows, tmp_path / "table.csv")
    cells = [(row["dataset"], row["data"], row["data_fingerprint"], row["accuracy"])
             for row in read_csv(tmp_path / "table.csv")]  # fmt: skip
    mean = ("Mean of 2 data sets", "", "", "70.0")
    assert cells == [
        ("pets", "/x/pets", first, "60.0"), ("pets", "/y/pets", second, "80.0"), mean,
    ]  # fmt: skip


def test_data_of_equal_names_are_told_apart_by_folder():
    first, again = result(folder="/x"), result(folder="/y", accuracy=70.0)
    moved = result("Pets", folder="/x"), result("Pets", folder="/y", seed=2)  # another seed
    rows = results.summarise(results.tell_data_apart([first, again, *moved]))
    assert [(row.dataset, row.folder, row.accuracies) for row in rows] == [
        ("DTD", "/x", {1: 60.0}), ("DTD", "/y", {1: 70.0}), ("Pets", "/x", {1: 60.0, 2: 60.0}),
    ]  # fmt: skip


def test_zero_shot_depends_on_neither_shots_nor_epochs():
    plain = result(method="zeroshot", shots=0, seed=0, accuracy=50.0, settings={})
    rows = [result(shots=n, epochs=e, accuracy=60.0 + n + e) for n in (1, 4) for e in (5, 10)]
    for text in (markdown(*rows), markdown(plain, *rows)):
        assert lines_of(text, "DTD, CLIP tiny") == [
            ["zero-shot CLIP", "50.0", "50.0"],
            ["DPT (epochs 10)", "**71.0 (+21.0)**", "**74.0 (+24.0)**"],
            ["DPT (epochs 5)", "66.0 (+16.0)", "69.0 (+19.0)"],
        ]
    assert "| accuracy |" in markdown(plain) and "DPT" not in markdown(plain)


def test_zero_shot_accuracies_of_unequal_settings_are_not_averaged():
    text = markdown(*(
        result(template=template, zero_shot=zero_shot, method=method)
        for template, zero_shot, method in (("a {}", 40.0, "dpt"), ("b {}", 50.0, "coop"))
    ))  # fmt: skip
    assert [line[:2] for line in lines_of(text, "DTD, CLIP tiny")] == [
        ["zero-shot CLIP (template a {})", "40.0"], ["zero-shot CLIP (template b {})", "50.0"],
        ["CoOp (template b {})", "**60.0 (+10.0)**"], ["DPT (template a {})", "**60.0 (+20.0)**"],
    ]  # fmt: skip


def test_methods_stand_in_their_order_and_the_best_is_bold():
    accuracies = {"dpt": 49.96, "vlp": 63.04, "vpt": 63.0, "coop": 62.9}
    text = markdown(*(result(method=method, accuracy=a) for method, a in accuracies.items()))
    assert lines_of(text, "DTD, CLIP tiny") == [
        ["zero-shot CLIP", "50.0"], ["CoOp", "62.9 (+12.9)"], ["VPT", "**63.0 (+13.0)**"],
        ["VLP", "**63.0 (+13.0)**"], ["DPT", "50.0 (+0.0)"],
    ]  # fmt: skip


def test_notes_stand_below_the_tables_with_a_number_where_they_belong():
    cells = [("coop", 1, ("all", "a")), ("coop", 9, ("all", "few")), ("vpt", 1, ("all",)),
             ("dpt", 1, ("all", "slow")), ("dpt", 9, ("few", "slow", "all"))]  # fmt: skip
    text = markdown(*(
        result(method=method, shots=shots, notes=notes, accuracy=accuracy)
        for accuracy, (method, shots, notes) in enumerate(cells, start=50)
    ))  # fmt: skip
    assert "1. all\n2. a\n3. few\n4. slow\n" in text
    assert lines_of(text, "DTD, CLIP tiny")[1:] == [
        ["CoOp [1]", "50.0 (+0.0) [2]", "51.0 (+1.0) [3]"], ["VPT [1]", "52.0 (+2.0)", ""],
        ["DPT [1] [4]", "**53.0 (+3.0)**", "**54.0 (+4.0)** [3]"],
    ]  # fmt: skip


def test_a_setting_that_varies_on_one_data_set_leaves_the_mean():
    rows = results.summarise([result("DTD"), result("Pets"), result("Pets", epochs=200)])
    assert [(row.dataset, row.label) for row in rows] == [
        ("DTD", "DPT"), ("Pets", "DPT"), ("Pets", "DPT (epochs 200)"),
    ]  # fmt: skip
    mean = lines_of(tables.markdown(rows), "Mean of 2 data sets, CLIP tiny")
    assert mean[1:] == [["DPT", "**60.0 (+10.0)**"], ["DPT (epochs 200) [1]", "–"]]


@pytest.mark.parametrize("setting", ["fingerprint", "clip_fingerprint"])
def test_runs_on_other_images_or_of_other_weights_are_not_pooled(setting):
    first, second = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    others = [result(**{setting: second}, seed=n, accuracy=a) for n, a in ((2, 10.0), (3, 20.0))]
    rows = results.summarise([result(**{setting: first}), *others])
    assert [row.accuracies for row in rows] == [{1: 60.0}, {2: 10.0, 3: 20.0}]
    text = tables.markdown(rows)
    assert "0123" not in text.split("\n1. ")[0] and "\n1. " in text  # only in notes
    if setting == "clip_fingerprint":
        assert [row.label for row in rows] == ["DPT", "DPT"]
        assert "1. clip fingerprint 0123456789a … abcdef\n2. clip fingerprint fedcba98765" in text


def test_only_runs_of_like_settings_are_averaged_over_data_sets():
    rows = results.summarise([result("DTD", epochs=8), result("Pets", epochs=4)])
    assert [row.variant for row in rows] == ["epochs 8", "epochs 4"]
    mean = lines_of(tables.markdown(rows), "Mean of 2 data sets, CLIP tiny")
    assert [line[1] for line in mean] == ["50.0", "–", "–"]
    # each data set's published numbers of epochs and of warm-up are alike: ImageNet has its own
    usual = [result("DTD", "vlp", warmup_epochs=10),
             result("ImageNet", "vlp", warmup_epochs=1, accuracy=80.0)]  # fmt: skip
    rows = results.summarise(usual)
    assert [row.label for row in rows] == ["VLP", "VLP"]
    assert "VLP            | **70.0 (+20.0)**" in tables.markdown(rows)
    short = [replace(row, settings={"epochs": 20, "warmup_epochs": warmup, "template": row.dataset})
             for row, warmup in zip(usual, (2, 1))]  # fmt: skip
    assert [row.label for row in results.summarise(short)] == ["VLP", "VLP"]
    other = replace(usual[1], dataset="Pets", trained="Pets", tested="Pets")
    rows = results.summarise([usual[0], other])
    assert [row.label for row in rows] == ["VLP", "VLP (warmup epochs 1)"]


def test_options_that_are_not_published_stand_in_the_caption():
    def caption(*rows: results.Row) -> str:
        return tables.caption(results.summarise(rows))

    short = dict(epochs=6, batch_size=32, csc=True, n_ctx=16, precision="bf16")
    text = caption(result(**short), result(method="coop", **short))
    assert text == (
        "Top-1 accuracy in percent, one seed; in parentheses the gain over zero-shot CLIP in "
        "points; the best in bold. Settings not as published: --csc --epochs 6."
    )
    usual = result(method="coop", epochs=200, csc=False, n_ctx=16)
    text = caption(result(**short), usual, result(method="zeroshot", shots=0))
    assert text.endswith("bold. Settings not as published (DPT): --csc --epochs 6.")
    # by shots
    text = caption(*(result(method="coop", epochs=50, shots=n) for n in (1, 16)))
    assert text.endswith("bold. Settings not as published (CoOp): --epochs 50.")
    both = [result(**short, seed=1), result(**short, seed=2), result(**{**short, "epochs": 100})]
    rows = results.summarise(both)  # in the row's name it is said already
    assert {row.label for row in rows} == {"DPT (epochs 6)", "DPT"}
    text = tables.caption(rows)
    assert text.startswith("Top-1 accuracy in percent, mean ± standard deviation over 1 to 2 seeds "
                           "(divided by their number, as in CoOp's tables); ")  # fmt: skip
    assert text.endswith("bold. Settings not as published: --csc.")
    assert caption(result(method="zeroshot", shots=0)) == "Top-1 accuracy in percent."


def test_published_means_stand_only_below_the_eleven_data_sets():
    def text(names: list[str], model: str = "ViT-B/32") -> str:
        return markdown(*(result(name, model=model, fingerprint=name) for name in names))

    below = text(tables.ELEVEN).split("**Mean of 11 data sets, CLIP ViT-B/32**")[1]
    assert below.split("**")[3].startswith("Published means over the 11 data sets")
    published = lines_of(below, "Published means over the 11 data sets, ViT-B/32 (read off a plot, "
                         "±0.2)")  # fmt: skip
    assert published == [
        ["CoOp", "63.0", "75.7"], ["ProGrad", "64.8", "75.9"], ["TaskRes", "64.0", "76.8"],
        ["Tip-Adapter-F", "66.5", "77.1"], ["PLOT++", "66.5", "77.6"],
        ["CLIP-LoRA", "67.9", "78.9"],
    ]  # fmt: skip
    for names, model in ((tables.ELEVEN[1:], "ViT-B/32"), (tables.ELEVEN, "ViT-B/16"),
                         ([*tables.ELEVEN[1:], "mine"], "ViT-B/32")):  # fmt: skip
        assert "Published" not in text(names, model) and "Mean of" in text(names, model)


def test_published_options_are_the_defaults_of_train_py():
    usual = published_settings("dpt", 16, "DTD")
    assert [usual.pop(f"{stage}epochs") for stage in ("", "warmup_", "guidance_")] == [100, 10, 30]
    assert usual == {name: RunConfig().to_dict()[name] for name in usual} and len(usual) == 12


def test_unfinished_runs_are_counted_below_the_tables(sweep):
    shutil.copytree(sweep[0], "again")
    stopped = sorted(path.parent for path in Path("again").glob("*/summary.json"))[:2]
    for run in stopped:
        (run / "summary.json").unlink()
    out = run_checked("eval.py", "table", "again").out
    names = ", ".join(run.name for run in stopped)
    assert out.endswith(f"\nRuns left out of the tables: 2 not finished ({names}).\n")
    assert Path("again/table.md").read_text(encoding="utf-8") == out
    for path in Path("again").glob("*/summary.json"):
        path.unlink()
    result = run_command("eval.py", "table", "again")
    assert_one_line(result, "eval.py", "finished runs", "got 9", "not finished")


def test_what_is_no_run_is_left_out_of_the_tables(sweep):
    shutil.copytree(sweep[0], "again")
    out = run_checked("eval.py", "table", "again").out
    foreign = Path("again/a clip")  # the first in any order
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "clip"}')
    (foreign / "summary.json").write_text("{}")
    assert run_checked("eval.py", "table", "again").out == out
    result = run_command("eval.py", "test", "again")
    assert_one_line(result, "eval.py", "a run in it, such as again/")
    assert "a clip" not in result.err


def test_the_csv_has_a_value_for_each_seed(tmp_path):
    plain = result(method="zeroshot", shots=0, seed=0, accuracy=50.0)
    rows = results.summarise([result(seed=1), result(seed=3, accuracy=70.0), plain])
    tables.write_csv([*rows, *results.summarise([result("Pets", seed=2, accuracy=5.5)])],
                     tmp_path / "table.csv")  # fmt: skip
    table = read_csv(tmp_path / "table.csv")
    assert "seed 0" not in table[0]
    cells = [[row[f"seed {seed}"] for seed in (1, 2, 3)] for row in table]
    assert cells == [["", "", ""], ["60.0", "", "70.0"], ["", "5.5", ""]]
    names = ("method", "shots", "seeds", "accuracy", "std")
    assert [[row[name] for name in names] for row in table] == [
        ["zeroshot", "", "", "50.0", ""], ["dpt", "16", "2", "65.0", "5.0"],
        ["dpt", "16", "1", "5.5", ""],
    ]  # fmt: skip


def test_the_csv_has_a_harmonic_mean_for_each_seed_of_both_halves(tmp_path):
    halves = {"base": {1: 60.0, 2: 80.0, 3: 10.0}, "new": {1: 30.0, 2: 20.0, 3: 40.0}}
    rows = [
        result(trained="DTD, base classes", tested=f"DTD, {half} classes", seed=seed, accuracy=a)
        for half, accuracies in halves.items() for seed, a in accuracies.items()
    ]  # fmt: skip
    rows = results.summarise(rows)
    tables.write_csv(rows, tmp_path / "table.csv")
    mean = read_csv(tmp_path / "table.csv")[2]
    assert mean["tested"] == "DTD, harmonic mean of base and new" and mean["seeds"] == "3"
    assert [mean[f"seed {seed}"] for seed in (1, 2, 3)] == ["40.0", "32.0", "16.0"]
    assert float(mean["accuracy"]) == pytest.approx(2 * 50 * 30 / (50 + 30))  # not their mean
    assert mean["zero_shot_accuracy"] == "50.0"
    text = tables.markdown(rows)
    assert lines_of(text, "Base to new, CLIP tiny")[1][3:] == [
        "**50.0 ± 29.4 (+0.0)**", "30.0 ± 8.2 (-20.0)", "37.5 ± 10.0 (-12.5)",
    ]  # fmt: skip
    assert "A harmonic mean is that of two average accuracies." in text
    pets = [replace(row, dataset="Pets", trained=row.trained.replace("DTD", "Pets"),
                    tested=row.tested.replace("DTD", "Pets")) for row in rows]  # fmt: skip
    lines = lines_of(tables.markdown([*rows, *pets]), "Base to new, CLIP tiny")
    assert [line[0] for line in lines] == ["Mean of 2 data sets"] * 2 + ["DTD"] * 2 + ["Pets"] * 2
    lines = lines_of(
        tables.markdown([*rows, *(replace(row, fingerprint="g") for row in rows)]),
        "Base to new, CLIP tiny",
    )
    assert [line[0] for line in lines[2:]] == ["DTD [1]"] * 2 + ["DTD [2]"] * 2


def test_the_csv_has_all_that_was_measured(tmp_path, sweep):
    shutil.copytree(sweep[0], "again")
    for path in Path("again").glob("*-dpt-3shots-seed*/summary.json"):
        content = json.loads(path.read_text())
        (test,) = content["tests"].values()
        del test["calibration_error"]
        test |= {"top5_accuracy": 90.5, "mean_confidence": 80.5, "test_images": 15}
        path.write_text(json.dumps(content | {"notes": ["a", *range(24)]}))
    text = tables.write_tables("again")
    (row,) = (r for r in read_csv("again/table.csv") if (r["method"], r["shots"]) == ("dpt", "3"))
    assert (row["top5_accuracy"], row["mean_confidence"]) == ("90.5", "80.5")
    assert (row["test_images"], row["calibration_error"]) == ("15", "")
    assert row["notes"].startswith("a; 0; 1;") and ". a\n" in text
    assert row["notes"].endswith("; 18; more notes in summary.json: 5")


def test_names_in_tables_are_no_formulas_no_columns_and_no_control_characters(tmp_path):
    odd = result("a|b", tested="@x\x1b[31m\ny")
    rows = results.summarise([result("=1+1"), odd, result("caf\udce9")])
    tables.write_csv(rows, tmp_path / "table.csv")
    names = [row["dataset"] for row in read_csv(tmp_path / "table.csv")]
    assert names == ["'=1+1", "a|b", "caf\\udce9", "Mean of 2 data sets"]
    assert read_csv(tmp_path / "table.csv")[1]["tested"].startswith("'@x")
    table = tables.markdown(rows)
    assert "a\\|b" in table and "\x1b" not in table and "@x\\x1b[31m y" in table
    assert "**caf\\udce9, CLIP tiny**" in table


def test_runs_on_the_new_classes_are_in_the_table():
    only_new = result(trained="DTD, new classes", tested="DTD, new classes")
    table = markdown(result(), only_new)
    assert "**DTD, new classes, CLIP tiny**" in table and "Mean of" not in table
