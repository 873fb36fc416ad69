"""The precision that is taken, and what a run is told of the other: with times that are made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from image_folders import draw_classes
from scripts import SHORT, assert_one_line, inside, save_clip
from tiny_models import Sizes, clip_state, random_images, shared_clip

import minidpt
from minidpt.runs import folders, precision

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from products import Products  # noqa: E402

CPU = torch.device("cpu")
BROAD = Sizes(vision_width=192, vision_layers=4, text_width=128, text_layers=4, grid=5)


@pytest.fixture
def taking(monkeypatch):
    """Has products take these seconds in fp32 and in bf16."""

    def take(fp32: float, bf16: float) -> None:
        seconds = {torch.float32: fp32, torch.bfloat16: bf16}
        monkeypatch.setattr(
            precision, "product_seconds", lambda widths, dtype, most=0: seconds[dtype]
        )

    return take


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but in a product, which takes what the test says."""

    class Clock:
        now, products, seconds = 0.0, 0, staticmethod(lambda number, rows: 1.0)

        def product(self, rows, matrix):
            assert rows.shape[1] == matrix.shape[1]
            self.now += self.seconds(self.products, rows)
            self.products += 1

    clock = Clock()
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(precision.F, "linear", clock.product)
    precision.product_seconds.cache_clear()
    yield clock
    precision.product_seconds.cache_clear()


def test_the_precision_on_a_processor_is_fp32_unless_asked_for():
    assert precision.choose_precision(None, CPU)[0] == "fp32"
    assert precision.choose_precision("bf16", CPU) == ("bf16", "as set")


@pytest.mark.parametrize(("bf16", "taken"), [(0.008, "bf16"), (0.0081, "fp32"), (0.5, "fp32")])
def test_auto_takes_bf16_where_it_is_one_and_a_half_times_as_fast(taking, bf16, taken):
    taking(0.012, bf16)
    chosen, reason = precision.choose_precision("auto", CPU, shared_clip(BROAD))
    assert chosen == taken
    over = "over " if bf16 > 0.012 else ""
    assert f"take 12.0 ms in fp32, {over}{1e3 * bf16:.1f} ms in bf16" in reason


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_auto_is_the_usual_precision_on_a_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    assert precision.choose_precision("auto", gpu) == precision.choose_precision(None, gpu)
    assert precision.choose_precision(None, gpu)[0] == ("fp16" if capability < (8, 0) else "bf16")


def test_the_best_of_five_tries_of_each_product_are_added_up(clock):
    clock.seconds = lambda number, rows: (9.0, 2.0, 3.0, 9.0, 5.0)[number % 5]
    assert precision.product_seconds((5, 3), torch.float32) == 4 * 2
    assert clock.products == 4 * 5


def test_a_precision_that_is_slow_is_tried_no_longer_than_it_takes_to_see_that(clock):
    """The other took 1 s for all: two products of 0.75 s are tried twice, the others not at all."""
    clock.seconds = lambda number, rows: 0.75
    assert precision.product_seconds((5, 3), torch.bfloat16, most=1.0) == 2 * 0.75
    assert clock.products == 2 + 2
    clock.seconds = lambda number, rows: 30.0
    assert precision.product_seconds((7, 3), torch.bfloat16, most=1.0) == 30
    assert clock.products == 4 + 1


def test_timing_leaves_the_random_numbers_of_a_run_alone():
    precision.product_seconds.cache_clear()
    before = torch.get_rng_state()
    assert 0 < precision.product_seconds((5, 3), torch.float32) < 1
    assert torch.equal(before, torch.get_rng_state())


# What a run costs


@pytest.mark.parametrize("method", ["coop", "vpt", "vlp", "dpt"])
def test_the_operations_of_a_step_are_reckoned_as_they_are_counted(method):
    """But for attention, the last layer's other tokens and class-aware prompts: at most a third."""
    names = [f"class {number}" for number in range(40)]
    config = minidpt.PromptConfig(method=method, top_k=3, n_visual=2)
    model = minidpt.build_model(shared_clip(BROAD), names, "a {}.", config)
    images, labels = random_images(BROAD, 6), torch.arange(6)
    with Products() as products:
        model.loss(model(images), labels, guidance=True).backward()
    reckoned = precision.weight_operations(model, steps=1, trained=6, tested=0)
    assert reckoned == pytest.approx(products.operations(), rel=0.33)
    assert precision.weight_operations(model, 7, 42, 0) == 7 * reckoned


def test_the_operations_of_a_test_are_a_frozen_pass_and_one_with_prompts():
    models = [
        minidpt.build_model(shared_clip(BROAD), ["ox", "yak"], "{}.", minidpt.PromptConfig(method))
        for method in ("coop", "vpt")
    ]
    coop, vpt = (precision.weight_operations(model, 0, 0, tested=11) for model in models)
    assert vpt == 2 * coop == 2 * 2 * 11 * 26 * (4 * 12 * 192**2)  # 12·W² weights a layer


@pytest.fixture(scope="module")
def model() -> minidpt.PromptedCLIP:
    clip = minidpt.build_clip(clip_state(BROAD))
    return minidpt.build_model(clip, ["ox", "yak"], "{}.", minidpt.PromptConfig("vpt"))


def test_a_run_of_over_ten_minutes_is_told_that_bf16_would_be_faster(model, taking):
    taking(1.0, 0.4)
    products = 14 * precision.ROWS * (192**2 + 128**2)  # in a second
    picture = precision.weight_operations(model, 1, 1, 0)
    of_minutes = products * 60 / picture  # as many pictures take a minute
    assert precision.slow_note(model, 1, int(9.9 * of_minutes), 0) == ""
    note = precision.slow_note(model, 1, int(30 * of_minutes), 0)
    assert "some 30 minutes in fp32" in note and "2.5 times as fast" in note
    assert "1000.0 ms in fp32, 400.0 ms in bf16" in note and "--precision bf16" in note
    assert "some 1.5 hours" in precision.slow_note(model, 1, int(90 * of_minutes), 0)
    assert "some 30 minutes" in precision.slow_note(model, 0, 0, int(30 * of_minutes))
    taking(1.0, 0.7)
    assert precision.slow_note(model, 1, int(30 * of_minutes), 0) == ""


def test_a_run_that_is_not_in_fp32_is_told_nothing(taking):
    taking(1.0, 0.1)
    clip = minidpt.build_clip(clip_state(BROAD)).cast(torch.bfloat16)
    model = minidpt.build_model(clip, ["ox", "yak"], "{}.", minidpt.PromptConfig("vpt"))
    assert precision.slow_note(model, 10**6, 10**9, 10**9) == ""


# The scripts


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Pictures of three classes and a CLIP."""
    folder = tmp_path_factory.mktemp("files")
    return draw_classes(folder, {"ox": 6, "gnu": 6, "owl": 6}), save_clip(folder / "little.pt")


def precision_of(run: str) -> str:
    return json.loads(Path(run, "config.json").read_text(encoding="utf-8"))["precision"]


def test_a_sweep_by_auto_keeps_to_what_its_first_run_took(files, taking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, clip = files
    command = ["--data", data, "--model", clip, *SHORT, "--shots", 1, "--method", "coop",
               "--epochs", 1, "--precision", "auto", "--out", "sweep", "--seed"]  # fmt: skip
    taking(0.012, 0.004)
    begun = inside("train.py", *command, 1, 2)
    assert (begun.status, begun.err) == (0, "")
    assert "in bf16 (products of its sizes take 12.0 ms in fp32, 4.0 ms in bf16)" in begun.out
    taking(0.012, 0.4)  # another day, the machine is busy
    gone_on = inside("train.py", *command, 1, 2, 3)
    assert (gone_on.status, gone_on.err) == (0, "")
    assert "3 runs in sweep, 2 of them finished" in gone_on.out
    assert "in bf16 (as its runs have it)" in gone_on.out
    runs = sorted(path.parent for path in Path("sweep").glob("*/config.json"))
    assert [precision_of(run) for run in runs] == 3 * ["bf16"]

    tested = inside("eval.py", "--run", runs[0])
    assert "in bf16)" in tested.out
    tested = inside("eval.py", "--run", runs[0], "--precision", "auto")
    assert "in fp32 (products of its sizes take 12.0 ms in fp32, over 400.0 ms" in tested.out
    assert (tested.status, tested.out.count("\n")) == (0, 2)

    Path(runs[0], "config.json").write_text('{"precision": "fp64"}')
    assert_one_line(inside("train.py", *command, 1), "train.py", "fp32, bf16, fp16", "fp64")


def test_nothing_is_noted_where_no_run_has_begun(tmp_path):
    assert precision.noted_precision([folders.Run(tmp_path), folders.Run(tmp_path / "no")]) is None


def test_training_tells_of_bf16_at_its_start(files, monkeypatch, taking, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precision, "LONG", 0)
    taking(1.0, 0.4)
    data, clip = files
    result = inside("train.py", "--data", data, "--model", clip, *SHORT, "--epochs", 0)
    lines = result.out.splitlines()
    told = [number for number, line in enumerate(lines) if "--precision bf16, 2.5 times" in line]
    assert len(told) == 1 and "zero-shot accuracy" in lines[told[0] + 1]
