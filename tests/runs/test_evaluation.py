"""Accuracy, test sets whose pixels and frozen features are kept."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_folders import draw_image
from helpers.tiny_models import WIDE, clip_state
from PIL import Image
from torch.nn import functional as F

import minidpt
from minidpt.data import batches
from minidpt.data import samples as data
from minidpt.images import decode
from minidpt.images.decode import WhiteLevel
from minidpt.images.transforms import Preprocess, normalize
from minidpt.runs import evaluation
from minidpt.support.distributed import PeerLost, World
from minidpt.support.progress import use_progress

CLASSNAMES = ["ox", "owl", "gnu"]


class SmallBatches(evaluation.EvalSet):
    batch_size = 3


@pytest.fixture(scope="module")
def clip() -> minidpt.CLIP:
    return minidpt.build_clip(clip_state(WIDE))


@pytest.fixture
def items(tmp_path: Path) -> list[data.Sample]:
    colours = [(10 * n, 200 - 30 * n, 99) for n in range(7)]
    paths = [draw_image(tmp_path / f"{n}.png", color=colour) for n, colour in enumerate(colours)]
    return [data.Sample(str(path), n % 3, CLASSNAMES[n % 3]) for n, path in enumerate(paths)]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The paths of images in the order in which they are decoded."""
    paths, open_image = [], decode.open_image

    def counting(path: str, white_level: WhiteLevel) -> Image.Image:
        paths.append(path)
        return open_image(path, white_level)

    monkeypatch.setattr(decode, "open_image", counting)
    return paths


def build(clip: minidpt.CLIP, method: str) -> minidpt.PromptedCLIP:
    torch.manual_seed(0)
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=2)
    return minidpt.build_model(clip, CLASSNAMES, "a {}.", config).eval()


def assert_same(first: list[batches.Batch], second: list[batches.Batch]) -> None:
    for batch, other in zip(first, second, strict=True):
        assert torch.equal(batch.images, other.images) and torch.equal(batch.labels, other.labels)


@torch.no_grad()
def naive_logits(model: minidpt.PromptedCLIP, items: list[data.Sample]) -> torch.Tensor:
    """Image by image, nothing shared."""
    preprocess = Preprocess(model.clip.visual.resolution)
    images = [preprocess(Image.open(item.path).convert("RGB")) for item in items]
    return torch.cat([model(image[None]).logits for image in images])


@pytest.mark.parametrize("method", minidpt.METHODS)
def test_accuracy_is_that_of_the_model_on_every_image(method, clip, items):
    model = build(clip, method)
    labels = naive_logits(model, items).argmax(dim=-1)
    right = [item._replace(label=int(label)) for item, label in zip(items, labels)]
    wrong = [item._replace(label=(int(label) + 1) % 3) for item, label in zip(items, labels)]
    mixed = right[:3] + wrong[3:]  # of batches with 3/3, 0/3 and 0/1: not the mean of the batches
    for samples, expected in ((right, 100.0), (wrong, 0.0), (mixed, 300 / 7)):
        test = SmallBatches(samples, clip, workers=0)
        predictions = evaluation.predict_eval_set(model, test).predicted
        assert evaluation.top1_accuracy(predictions, test.labels) == pytest.approx(expected)


def test_the_likeliest_classes_of_every_image_are_kept(clip, items):
    torch.manual_seed(0)
    names = ["ox", "owl", "gnu", "yak", "emu", "elk", "cow"]
    model = minidpt.build_model(clip, names, "a {}.", minidpt.PromptConfig("coop", n_ctx=3))
    logits = naive_logits(model.eval(), items)
    predictions = evaluation.predict_eval_set(model, SmallBatches(items, clip))
    assert predictions.top5.tolist() == logits.argsort(descending=True)[:, :5].tolist()
    assert predictions.predicted.tolist() == predictions.top5[:, 0].tolist()
    shares = logits.softmax(dim=-1).amax(dim=-1)
    torch.testing.assert_close(predictions.probabilities, shares, rtol=1e-4, atol=1e-6)


def test_zero_shot_accuracy_is_that_of_the_template(clip, items):
    model = build(clip, "dpt")
    labels = naive_logits(build(clip, "zeroshot"), items).argmax(dim=-1)
    right = [item._replace(label=int(label)) for item, label in zip(items, labels)]
    predictions = evaluation.zero_shot(model, evaluation.EvalSet(right, clip))
    assert predictions.predicted.tolist() == labels.tolist()


def test_frozen_features_are_those_of_the_images(clip, items):
    preprocess = Preprocess(clip.visual.resolution)
    images = torch.stack([preprocess(Image.open(item.path).convert("RGB")) for item in items])
    with torch.no_grad():
        expected = F.normalize(clip.encode_image(images), dim=-1)
    trained = minidpt.build_clip(clip_state(WIDE))
    trained.visual.ln_post.requires_grad_(True)  # by a user: no_grad is what the test needs
    features = SmallBatches(items, trained).features()
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad


@pytest.mark.parametrize("method", minidpt.METHODS)
def test_a_model_given_the_frozen_features_gives_the_same(method, clip, items):
    model = build(clip, method)
    test = SmallBatches(items, clip)
    for images, frozen in test.batches(images=True):
        expected, output = model(images), model(images, frozen)
        for ours, theirs in zip(output[:5], expected[:5], strict=True):  # without image_features
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)


def test_test_images_are_decoded_once_for_all_models(clip, items, decoded):
    test = SmallBatches(items, clip, workers=0)
    for method in ("dpt", "coop"):
        evaluation.zero_shot(build(clip, method), test)
        evaluation.predict_eval_set(build(clip, method), test)
    assert decoded == [item.path for item in items]
    first, second = list(test.pixels()), list(test.pixels())
    assert len(test) == 7 and [len(batch.labels) for batch in first] == [3, 3, 1]
    assert_same(first, second)
    assert torch.cat([batch.labels for batch in second]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert all(batch.images.dtype == torch.uint8 for batch in second)


@pytest.mark.parametrize(("spare", "times"), [(0, 1), (-1, 2)])
def test_test_images_that_take_too_much_memory_are_decoded_again(
    clip, items, decoded, monkeypatch, spare, times
):
    size = 7 * 3 * clip.visual.resolution**2
    monkeypatch.setattr(SmallBatches, "max_bytes", size + spare)
    test = SmallBatches(items, clip)
    assert_same(list(test.pixels()), list(test.pixels()))
    assert len(decoded) == 7 * times
    test.features()
    decoded.clear()
    evaluation.zero_shot(build(clip, "vpt"), test)  # needs nothing but the features
    assert not decoded


def test_processes_on_one_machine_share_the_memory_of_pixels(clip, items, monkeypatch):
    size = 7 * 3 * clip.visual.resolution**2
    for max_bytes, keeps_pixels in ((3 * size, True), (3 * size - 1, False)):
        monkeypatch.setattr(SmallBatches, "max_bytes", max_bytes)
        test = SmallBatches(items, clip, world=World(local_size=3))
        assert test.keeps_pixels == keeps_pixels


def test_a_pass_over_test_images_ends_when_torchrun_has_ended(clip, items):
    with pytest.raises(PeerLost, match="torchrun"):
        list(evaluation.EvalSet(items, clip, world=World(parent=-1)).pixels())


def test_all_ranks_have_read_their_images_before_anything_is_written(clip, items):
    steps = []

    class Recorded(World):
        def barrier(self):
            steps.append("barrier")

    class ReadSet(evaluation.EvalSet):
        def features(self):
            steps.append("features")

    model = build(clip, "coop")
    model.world = Recorded()
    assert evaluation.read_images(model, [ReadSet(items, clip)]) == []
    assert steps == ["features", "barrier"]


def test_prompts_are_computed_once_for_all_test_images(clip, items, monkeypatch):
    model, computed = build(clip, "dpt"), []
    compute = model.compute_prompt_features
    monkeypatch.setattr(model, "compute_prompt_features", lambda: computed.append(1) or compute())
    evaluation.predict_eval_set(model, SmallBatches(items, clip))
    model.predict([item.path for item in items])
    assert computed == [1]


def test_a_pass_that_ends_early_keeps_no_part_of_the_test_images(clip, items):
    test = SmallBatches(items, clip, workers=0)
    next(iter(test.pixels()))
    assert sum(len(batch.labels) for batch in test.pixels()) == 7


def test_metrics_of_a_test_are_those_of_loops_over_images():
    rng = np.random.default_rng(0)
    labels, predicted, frozen = rng.choice(6, (3, 200), p=[0.4, 0.2, 0.2, 0.1, 0.1, 0])
    shares = rng.uniform(0.2, 1, 200).round(2)  # also 0.2 and 0.6, which end a bin
    top5 = np.array([rng.permutation(6)[:5] for _ in labels])
    learned = evaluation.EvalPredictions(*map(torch.tensor, (predicted, shares, top5)))
    zero_shot = learned._replace(predicted=torch.tensor(frozen))
    metrics = evaluation.compute_metrics(learned, zero_shot, torch.tensor(labels), 6)
    right = predicted == labels
    error = 0
    for number in range(15):
        inside = (shares * 15 > number + 1e-9) & (shares * 15 <= number + 1 + 1e-9)
        if inside.any():
            error += inside.sum() / 2 * abs(right[inside].mean() - shares[inside].mean())
    assert metrics == pytest.approx({
        "zero_shot_accuracy": 100 * np.mean(frozen == labels), "accuracy": 100 * right.mean(),
        "test_images": 200, "mean_confidence": 100 * shares.mean(), "calibration_error": error,
        "mean_class_accuracy": 20 * sum(right[labels == label].mean() for label in range(5)),
        "largest_class_share": max(np.mean(labels == label) * 100 for label in range(6)),
        "top5_accuracy": 100 * np.mean([label in row for label, row in zip(labels, top5)]),
    })  # fmt: skip
    assert "top5_accuracy" not in evaluation.compute_metrics(
        learned, zero_shot, torch.tensor(labels), 5
    )


def test_a_result_below_the_largest_class_is_said():
    metrics = {"accuracy": 24.25, "mean_class_accuracy": 31, "mean_confidence": 80.04,
               "largest_class_share": 50, "top5_accuracy": 90}  # fmt: skip
    line = "mean over classes 31.00 %; top-5 accuracy 90.00 %; confidence 80.0 %, right 24.2 %"
    below = "; naming the largest class each time: 50.00 %"
    assert evaluation.describe_metrics(metrics) == line + below
    assert evaluation.describe_metrics({**metrics, "largest_class_share": 24.25}) == line


# Images of more than 8 bits, and copies


def test_another_white_level_is_another_test(tmp_path, clip):
    noise = np.random.default_rng(0).integers(0, 4096, (30, 30)).astype(np.uint16)
    Image.fromarray(noise).save(tmp_path / "a.png")
    items = [data.Sample(str(tmp_path / "a.png"), 0, "ox")]
    test = evaluation.EvalSet(items, clip, workers=0)
    test.set_white_level(WhiteLevel(integer=4095))
    first, (pixels, _) = test.features(), next(test.pixels())
    image = Image.fromarray((noise * (255 / 4095)).round().astype(np.uint8))
    expected = Preprocess(clip.visual.resolution)(image)
    assert torch.equal(normalize(pixels)[0], expected)
    test.set_white_level(WhiteLevel(integer=65535))
    assert not torch.equal(test.features(), first)
    test.set_white_level(WhiteLevel())  # by the test images' own, one for all
    assert torch.equal(test.features(), first) and test.white_level == {"integer": 4095}
    assert torch.equal(normalize(next(test.pixels())[0])[0], expected)
    model = build(clip, "coop")
    evaluation.read_images(model, [evaluation.EvalSet(items, clip, workers=0)])
    assert model.white_level == {}  # is that of its training images


def test_copies_are_found_by_their_bytes(tmp_path, monkeypatch):
    contents = {"a": b"x" * 3000, "b": b"y" + b"x" * 2999, "c": b"x" * 2999 + b"y", "d": b"xx"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "copy").write_bytes(contents["a"])
    read, digest = [], data.file_digest
    monkeypatch.setattr(data, "file_digest", lambda path: read.append(path) or digest(path))
    a, b, c, d, copy = (str(tmp_path / name) for name in ("a", "b", "c", "d", "copy"))
    note = data.copies_note([a, str(tmp_path / "gone")], [b, c, copy, d, a])
    assert note == f"copies of training images among the test images: 2, such as {copy}"
    assert set(read) == {a, b, copy}  # of another size or end: not read
    assert data.copies_note([a], [b, c, d, str(tmp_path / "gone")]) == ""


def test_an_image_in_two_classes_is_named_with_both(tmp_path):
    contents = {"a": b"x" * 3000, "b": b"y" * 3000, "c": b"x" * 3000, "d": b"x" * 3000, "e": b"y"}
    a, b, c, d, e = (str(tmp_path / name) for name in contents)
    for path, content in zip((a, b, c, d, e), contents.values(), strict=True):
        Path(path).write_bytes(content)
    ox, owl = partial(data.Sample, label=0, classname="ox"), partial(data.Sample, label=1)
    samples = [ox(a), ox(b), ox(c), owl(e, classname="owl"), ox(str(tmp_path / "gone"))]
    assert data.two_classes_note(samples) == ""  # twice in one class
    note = f"copies of a training image in two classes: 1, such as {a} of 'ox' and {d} of 'owl'"
    assert data.two_classes_note([*samples, owl(d, classname="owl")]) == note
    note = f"copies of a training image in two classes: 1, such as {b} of 'ox' and {b} of 'ox'"
    assert data.two_classes_note([*samples, owl(b, classname="ox")]) == note  # of one name


@pytest.mark.parametrize("step", ["_end", "file_digest"])
def test_an_image_that_cannot_be_opened_is_no_copy(tmp_path, monkeypatch, step):
    def refused(path: str) -> bytes:
        raise PermissionError(path)

    for name in "ab":
        (tmp_path / name).write_bytes(b"x" * 3000)
    monkeypatch.setattr(data, step, refused)
    assert data.copies_note([str(tmp_path / "a")], [str(tmp_path / "b")]) == ""


def test_each_pass_over_images_is_told_to_who_watches(clip, items):
    reports: dict[str, list[int]] = {}

    @contextmanager
    def watch(task, total):
        yield reports.setdefault(f"{task} of {total}", []).append

    with use_progress(watch):
        batches.ImageCache().fill([item.path for item in items])
        test = SmallBatches(items, clip)
        list(test.batches(images=True))
    assert reports == {
        "training images read of 7": [1, 2, 3, 4, 5, 6, 7],
        "test images through zero-shot CLIP of 7": [3, 6, 7],
        "test images of 7": [3, 6, 7],
    }


def test_logits_that_are_not_finite_are_an_error_that_names_the_file(clip, items):
    model, eval_set = build(clip, "vpt"), evaluation.EvalSet(items, clip)
    model.path = "run/model.pt"
    model.visual_prompts.prompts.data.fill_(3e38)
    with pytest.raises(ValueError, match="^run/model.pt: expected finite logits.*lower learning"):
        evaluation.predict_eval_set(model, eval_set)
    with pytest.raises(ValueError, match="^run/model.pt: expected finite logits"):
        evaluation.predict_eval_set(model.for_classes(CLASSNAMES[:2]), eval_set)
    evaluation.zero_shot(model, eval_set)  # without the prompts
    model.template_features[1, 0] = torch.inf
    with pytest.raises(ValueError, match="^CLIP custom: expected finite logits"):
        evaluation.zero_shot(model, eval_set)
