"""Tables of what runs have given: what is averaged, and what is told apart."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from helpers.run_command import assert_one_line, read_summary, run_command
from helpers.short_runs import read_csv, run_checked

from minidpt.runs import results
from minidpt.runs.config import RunConfig, published_settings


def test_the_table_is_the_mean_and_deviation_over_seeds(sweep):
    folder, _, _ = sweep
    table = {(row["method"], row["shots"]): row for row in read_csv(folder / "table.csv")}
    assert set(table) == {("zeroshot", "0"), *((m, s) for m in ("coop", "dpt") for s in "13")}
    for method in ("coop", "dpt"):
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
            assert any(line.startswith(f"| {method}") and shown in line for line in lines)


def make_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("summary.json", "{}", "summary.json: expected an entry"),
        ("summary.json", "", "summary.json: expected JSON"),
        ("summary.json", {"shots": True}, "'shots' (int)"),
        ("summary.json", {"method": "x"}, "of a known method"),
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
    assert "| coop" in out and "| dpt" not in out
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
    text = results.write_tables("again")
    rows = [
        row for row in read_csv("again/table.csv") if (row["method"], row["shots"]) == ("dpt", "3")
    ]
    usual, longer = sorted(rows, key=lambda row: row["variant"])
    assert (usual["variant"], longer["variant"]) == ("epochs 2", "epochs 50")
    assert (usual["seeds"], longer["seeds"]) == ("2", "1")
    (other,) = Path("again").glob("*-dpt-3shots-seed0")
    assert float(usual["accuracy"]) == pytest.approx((read_summary(other)["accuracy"] + 12.5) / 2)
    assert float(longer["accuracy"]) == read_summary(folder / run.name)["accuracy"]
    assert "dpt (epochs 50)" in text and "| coop " in text


def test_the_mean_over_data_sets_is_taken_for_each_seed():
    def row(dataset: str, accuracies: dict[int, float]) -> results.Row:
        return results.Row(dataset, dataset, dataset, "tiny", "dpt", 1, "", 50.0, accuracies)

    rows = [row("EuroSAT", {1: 10.0, 2: 30.0, 3: 99.0}), row("DTD", {1: 30.0, 2: 10.0})]
    table = results.markdown(rows)
    mean = table.split("Mean of 2 data sets")[1].split("**")[1]
    assert "| dpt       | 20.0 ± 0.0 |" in mean  # one goes up where the other goes down


def result(dataset="DTD", method="dpt", seed=1, zero_shot=50.0, accuracy=60.0, tested=None, **more):
    tested = tested or dataset
    return results.Row(
        dataset, dataset, tested, "tiny", method, 16, "", zero_shot, {seed: accuracy},
        {"epochs": 100} | more,
    )  # fmt: skip


def test_a_setting_that_varies_on_one_data_set_leaves_the_mean():
    rows = results.summarise([result("DTD"), result("Pets"), result("Pets", epochs=200)])
    assert {(row.dataset, row.variant) for row in rows} == {
        ("DTD", "epochs 100"), ("Pets", "epochs 100"), ("Pets", "epochs 200"),
    }  # fmt: skip
    mean = results.markdown(rows).split("Mean of 2 data sets")[1].split("**")[1]
    assert "dpt (epochs 100) | 60.0" in mean and "epochs 200" not in mean


@pytest.mark.parametrize("setting", ["data_fingerprint", "clip_fingerprint"])
def test_runs_on_other_images_or_of_other_weights_are_not_pooled(setting):
    first, second = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    others = [result(**{setting: second}, seed=n, accuracy=a) for n, a in ((2, 10.0), (3, 20.0))]
    rows = results.summarise([result(**{setting: first}), *others])
    assert {row.variant: row.accuracy for row in rows} == {
        f"{setting} 0123456789a … abcdef": 60.0, f"{setting} fedcba98765 … 543210": 15.0,
    }  # fmt: skip


def test_only_runs_of_like_settings_are_averaged_over_data_sets():
    rows = results.summarise([result("DTD", epochs=8), result("Pets", epochs=4)])
    assert [row.variant for row in rows] == ["epochs 8", "epochs 4"]
    assert "dpt" not in results.markdown(rows).split("Mean of 2 data sets")[-1].split("**DTD")[0]
    # each data set's published numbers of epochs and of warm-up are alike: ImageNet has its own
    usual = [result("DTD", "vlp", warmup_epochs=10),
             result("ImageNet", "vlp", warmup_epochs=1, accuracy=80.0)]  # fmt: skip
    rows = results.summarise(usual)
    assert [row.variant for row in rows] == ["", ""]
    assert "vlp       | 70.0" in results.markdown(rows).split("Mean of 2 data sets")[1]
    rows = results.summarise([usual[0], usual[1]._replace(dataset="Pets")])
    assert [row.variant for row in rows] == ["warmup_epochs 10", "warmup_epochs 1"]


def test_options_that_are_not_published_stand_in_the_caption():
    short = dict(epochs=6, batch_size=32, csc=True, n_ctx=16)
    text = results.caption(results.summarise([result(**short), result(method="coop", **short)]))
    assert text == "Accuracy in percent, one seed. Settings not as published: --epochs 6 --csc."
    usual = result(method="coop", epochs=200, csc=False, n_ctx=16)
    text = results.caption(results.summarise([result(**short), usual, result(method="zeroshot")]))
    assert text.endswith("one seed. Settings not as published (dpt): --epochs 6 --csc.")
    # by shots
    rows = [result(method="coop", epochs=50)._replace(shots=n) for n in (1, 16)]
    text = results.caption(results.summarise(rows))
    assert text.endswith("one seed. Settings not as published (coop): --epochs 50.")
    both = [result(**short, seed=1), result(**short, seed=2), result(**{**short, "epochs": 100})]
    rows = results.summarise(both)  # in the row's name it is said already
    assert {row.label for row in rows} == {"dpt (epochs 6)", "dpt (epochs 100)"}
    assert results.caption(rows) == (
        "Accuracy in percent, mean ± standard deviation over 1 to 2 seeds. "
        "Settings not as published: --csc."
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
    rows = results.summarise([result(seed=1), result(seed=3, accuracy=70.0),
                              result("Pets", seed=2, accuracy=5.5)])  # fmt: skip
    results.write_csv(rows, tmp_path / "table.csv")
    table = read_csv(tmp_path / "table.csv")
    cells = [[row[f"seed {seed}"] for seed in (1, 2, 3)] for row in table]
    assert cells == [["60.0", "", "70.0"], ["", "5.5", ""]]
    assert [(row["seeds"], row["accuracy"]) for row in table] == [("2", "65.0"), ("1", "5.5")]


def test_the_csv_has_a_harmonic_mean_for_each_seed_of_both_halves(tmp_path):
    halves = {"base": {1: 60.0, 2: 80.0, 3: 9.0}, "new": {1: 30.0, 2: 20.0}}
    rows = [
        results.Row("DTD", "DTD, base classes", f"DTD, {half} classes", "tiny", "dpt", 16, "", 50.0,
                    accuracies)
        for half, accuracies in halves.items()
    ]  # fmt: skip
    results.write_csv(rows, tmp_path / "table.csv")
    mean = read_csv(tmp_path / "table.csv")[2]
    assert mean["tested"] == "DTD, harmonic mean of base and new" and mean["seeds"] == "2"
    assert [mean[f"seed {seed}"] for seed in (1, 2, 3)] == ["40.0", "32.0", ""]


def test_names_in_tables_are_no_formulas_no_columns_and_no_control_characters(tmp_path):
    odd = result("a|b", tested="@x\x1b[31m\ny")
    rows = results.summarise([result("=1+1"), odd, result("caf\udce9")])
    results.write_csv(rows, tmp_path / "table.csv")
    names = [row["dataset"] for row in read_csv(tmp_path / "table.csv")]
    assert names == ["'=1+1", "a|b", "caf\\udce9"]
    assert read_csv(tmp_path / "table.csv")[1]["tested"].startswith("'@x")
    table = results.markdown(rows)
    assert "a\\|b" in table and "\x1b" not in table and "@x\\x1b[31m y" in table
    assert "**caf\\udce9, CLIP tiny**" in table


def test_zero_shot_accuracies_of_unequal_settings_are_not_averaged():
    asked = {"a {}.": 40.0, "my {}.": 50.0}
    rows = results.summarise(
        result(template=template, zero_shot=zero_shot) for template, zero_shot in asked.items()
    )
    table = results.markdown(rows)
    assert "zero-shot (template a {}.)  | 40.0" in table
    assert "zero-shot (template my {}.) | 50.0" in table


def test_runs_on_the_new_classes_are_in_the_table():
    row = results.summarise([result()])[0]
    only_new = row._replace(trained="DTD, new classes", tested="DTD, new classes")
    table = results.markdown([row, only_new])
    assert "**DTD, new classes, CLIP tiny**" in table and "Mean of" not in table
