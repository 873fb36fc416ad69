"""A model with its classes: built, saved, loaded, predicting; the names of published tensors."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import reference, torchscript
from helpers.reference_pair import (
    SMALL_CONFIGS,
    TEMPLATE,
    UNEQUAL_NAMES,
    ReferencePair,
    every_learning_method,
    every_method,
    make_labels,
)
from helpers.tiny_models import DEEP, WIDE, clip_state, random_images
from PIL import Image

import minidpt
from minidpt import inference
from minidpt.images.decode import WhiteLevel
from minidpt.model import parameters_on_meta

pytestmark = pytest.mark.usefixtures("clips_stay_as_they_are")


# Classes


@pytest.mark.parametrize(
    ("classnames", "message"),
    [
        ("ox", "a list of names, got 'ox'"),
        (None, "a list of names, got None"),
        ({"ox", "gnu"}, "a list of names, got"),  # in another order each time
        (["ox", 5], "a class's name, up to 500 bytes, .* got 5"),
        (["ox", "x" * 1001], "up to 500 bytes, .* got 'xxx"),
        (["ox", " _"], "a class's name, .* got ' _'"),
        (["ox"], "2 to 25,000 class names, got 1"),
        (["ox"] * 25_001, "2 to 25,000 class names, got 25,001"),
    ],
)
def test_class_names_that_are_none_are_refused(classnames, message):
    with pytest.raises(ValueError, match=message) as error:
        minidpt.build_model(minidpt.build_clip(clip_state(WIDE)), classnames, TEMPLATE)
    assert len(str(error.value)) < 500


def test_a_template_that_is_too_long_for_a_class_names_it():
    clip = minidpt.build_clip(clip_state(WIDE))
    with pytest.raises(ValueError, match="class 'long long.* tokens, CLIP takes 77: shorten the"):
        minidpt.build_model(clip, ["ox", "long " * 80], TEMPLATE)


def test_several_templates_are_saved_and_one_in_a_list_is_a_text(tmp_path):
    templates, clip = ["a {}.", "{} texture."], minidpt.build_clip(clip_state(WIDE))
    model = minidpt.build_model(clip, ["ox", "gnu"], templates)
    model.save(tmp_path / "several.pt")
    again = minidpt.load_model(tmp_path / "several.pt", clip)
    assert again.template == tuple(templates)
    assert torch.equal(again.template_features, model.template_features)
    other = model.for_classes(["gnu", "ox"])
    torch.testing.assert_close(other.template_features, model.template_features[[1, 0]])

    plain, single = (minidpt.build_model(clip, ["ox", "gnu"], t) for t in ("a {}.", ["a {}."]))
    assert torch.equal(plain.template_features, single.template_features)
    single.save(tmp_path / "one.pt")
    assert torch.load(tmp_path / "one.pt", weights_only=True)["template"] == "a {}."
    for wrong in ([], ["a {}.", 5], ["{}"] * 1001):
        with pytest.raises(ValueError, match="^template"):
            minidpt.build_model(clip, ["ox", "gnu"], wrong)


def test_prompts_are_fp32_whatever_torchs_default_is():
    clip, images = minidpt.build_clip(clip_state(DEEP)), random_images(DEEP, 2)
    torch.set_default_dtype(torch.float64)
    try:
        model = minidpt.build_model(clip, ["ox", "gnu"], TEMPLATE)
        assert all(value.dtype == torch.float32 for value in model.learned_parameters())
        output = model(images)
        model.loss(output, torch.tensor([0, 1]), guidance=True).backward()
    finally:
        torch.set_default_dtype(torch.float32)


# Model files


@every_method
def test_a_saved_model_has_bit_equal_logits_when_loaded(method, tmp_path):
    pair = ReferencePair({**SMALL_CONFIGS[method], "class_token_position": "middle"})
    pair.model.save(tmp_path / "model.pt")
    loaded = minidpt.load_model(tmp_path / "model.pt", clip=pair.clip)
    pair.model.eval(), loaded.eval()
    with torch.no_grad():
        assert torch.equal(loaded(pair.images()).logits, pair.model(pair.images()).logits)
    for name, value in pair.model.published().items():
        assert torch.equal(loaded.published()[name], value), name
    assert loaded.published().keys() == pair.model.published().keys()


def test_names_and_numbers_of_numpy_are_saved_as_pythons(tmp_path):
    clip = minidpt.build_clip(clip_state(WIDE))
    config = minidpt.PromptConfig(n_ctx=np.int64(3), top_k=np.int32(2), alpha=np.float64(0.2))
    minidpt.build_model(clip, np.array(UNEQUAL_NAMES), TEMPLATE, config).save(tmp_path / "model.pt")
    loaded = minidpt.load_model(tmp_path / "model.pt", clip)
    assert (loaded.classnames, loaded.config) == (list(UNEQUAL_NAMES), config)
    with pytest.raises(TypeError):
        minidpt.PromptConfig(n_ctx=2.5)


def test_other_classes_and_loading_leave_the_random_numbers_alone(tmp_path):
    pair = ReferencePair(SMALL_CONFIGS["dpt"])
    pair.model.save(tmp_path / "model.pt")
    state = torch.get_rng_state()
    pair.model.for_classes(["ox", "owl"])
    minidpt.load_model(tmp_path / "model.pt", clip=pair.clip)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_model_is_refused_and_a_failed_save_replaces_none(tmp_path, monkeypatch):
    pair, path = ReferencePair(SMALL_CONFIGS["dpt"]), tmp_path / "model.pt"
    pair.model.save(path)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1000])
    with pytest.raises(ValueError, match="model.pt: cut short"):
        minidpt.load_model(path)

    def interrupted(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair.model.save(path)
    assert path.read_bytes() == sound[:-1000] and list(tmp_path.iterdir()) == [path]


def test_a_bit_that_was_flipped_in_a_model_file_is_not_taken(tmp_path):
    pair, path = ReferencePair(SMALL_CONFIGS["vpt"]), tmp_path / "model.pt"
    pair.model.save(path)
    prompts = pair.model.visual_prompts.prompts.detach().numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(prompts) + 5] ^= 64
    path.write_bytes(content)
    with pytest.raises(ValueError, match="model.pt: member 'data/0' has another CRC-32"):
        minidpt.load_model(path, pair.clip)


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always writes them"
)
def test_a_model_file_without_crc_is_read(tmp_path):
    pair = ReferencePair(SMALL_CONFIGS["coop"])
    torch.serialization.set_crc32_options(False)
    try:
        pair.model.save(tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    minidpt.load_model(tmp_path / "model.pt", pair.clip)


@pytest.mark.parametrize("content", [torch.zeros(2), [1, 2], {"format": "other 1"}, "text"])
def test_a_file_of_another_kind_is_no_model(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected format|content: expected"):
        minidpt.load_model(tmp_path / "model.pt")


def test_a_torchscript_archive_is_no_model_and_is_not_run(tmp_path, monkeypatch):
    """torch.load of 2.4 hands one to torch.jit.load, also with `weights_only`."""
    with torchscript.ignore_deprecation():
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(2)).save(str(tmp_path / "model.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(ValueError, match="expected format|content: expected"):
        minidpt.load_model(tmp_path / "model.pt")


CTX, NO_NUMBERS = "text_prompts.ctx", torch.full((16, 64), torch.nan)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("format", ["minidpt 1"], "'format' .*got a list"),
        ("format", "minidpt 2", "expected format 'minidpt 3', got 'minidpt 2': train again"),
        ("format", "minidpt 99\n" + "x" * 10**6, "got 'minidpt 99.nx"),
        ("learned", 5, "an entry .learned. .dict., got 5"),
        ("learned", {5: 0, "x": torch.ones(1)}, "learned prompts: missing .* unknown x"),
        (f"learned {CTX}", 5, f"{CTX} is 5, expected a tensor"),
        (f"learned {CTX}", None, f"{CTX} is None, expected a tensor"),
        (
            f"learned {CTX}",
            torch.zeros(16, 64, dtype=torch.int32),
            f"{CTX} is torch.int32, expected",
        ),
        (f"learned {CTX}", NO_NUMBERS, f"{CTX} is not finite"),
        (f"learned {CTX}", torch.zeros(15, 64), rf"{CTX} is \(15, 64\), expected \(16, 64\)"),
        ("learned other", torch.zeros(1), "unknown other"),
        ("classnames", ["ox", "owl", 5], "a class's name, .* got 5"),
        ("classnames", "ox", "'classnames' .*got 'ox'"),
        ("classnames", ["ox", "owl", ""], "a class's name, .* got ''"),
        ("template", 5, "'template' .*got 5"),
        ("template", "no place", "template 'no place'"),
        ("config", None, "content: expected an entry 'config' \\(dict\\), got None"),
        ("config n_ctx", 50_000_000, "n_ctx: .*at most 1,000, got 50000000"),
        ("config n_ctx", 17, r"is \(16, 64\), expected \(17, 64\)"),
        ("config ctx_init", 5, "ctx_init.*5"),
        ("config csc", True, r"is \(16, 64\), expected \(3, 16, 64\)"),
        ("config alpha", float("nan"), "alpha: .*got nan"),
        ("config n_visual", 1000, r"is \(2, 2, 128\), expected \(2, 1000, 128\)"),
        ("config class_aware_from", 1, "missing class_aware"),
        ("config visual_layers", 99, "visual_layers: expected 1 to 3 of this CLIP, got 99"),
        ("config other", 1, "unexpected keyword argument 'other'"),
        ("clip", [], "content: expected an entry 'clip' \\(dict\\), got a list"),
        ("clip fingerprint", None, "'fingerprint' .*got None"),
        ("clip fingerprint", "0" * 64, "were learned with the weights of custom .000000000000…"),
        ("clip name", 5, "'name' .*got 5"),
        ("clip quick_gelu", 1, "'quick_gelu' .*got 1"),
    ],
)
def test_a_model_file_with_a_wrong_entry_is_refused_by_name(tmp_path, entry, value, message):
    clip, path = minidpt.build_clip(clip_state(WIDE)), tmp_path / "model.pt"
    config = minidpt.PromptConfig(n_visual=2)
    minidpt.build_model(clip, ["ox", "owl", "gnu"], TEMPLATE, config).save(path)
    content = torch.load(path, weights_only=True)
    *outer, last = entry.split()
    (content[outer[0]] if outer else content)[last] = value
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"model.pt: .*{message}") as error:
        minidpt.load_model(path, clip)
    assert len(str(error.value)) <= 500 and str(error.value).isprintable()


def test_shapes_that_a_config_implies_are_those_that_it_learns():
    for csc, ctx_init, method in itertools.product((0, 1), (None, "a photo of a"), SMALL_CONFIGS):
        config = minidpt.PromptConfig(method=method, csc=bool(csc), ctx_init=ctx_init)
        clip = minidpt.build_clip(clip_state(WIDE))
        learned = minidpt.build_model(clip, UNEQUAL_NAMES, TEMPLATE, config).prompt_state_dict()
        expected = parameters_on_meta(clip, len(UNEQUAL_NAMES), config)
        assert {k: v.shape for k, v in learned.items()} == {k: v.shape for k, v in expected.items()}
        assert all(value.is_meta for value in expected.values())


# Published tensors


@every_learning_method
@pytest.mark.parametrize("class_aware_from", [1, 2])
def test_published_tensors_come_back_as_they_were_loaded(method, class_aware_from):
    pair = ReferencePair({**SMALL_CONFIGS[method], "class_aware_from": class_aware_from})
    published = {name: value for name, value in pair.model.published().items() if value.numel()}
    assert published.keys() == pair.learned.keys()
    for name, value in pair.learned.items():
        assert torch.equal(published[name], value), name


def test_class_aware_prompts_in_all_layers_load_with_or_without_visual_tensor():
    pair = ReferencePair({**SMALL_CONFIGS["dpt"], "class_aware_from": 1, "n_visual": 2})
    assert reference.VISUAL not in pair.learned
    empty = torch.empty(0, 2, WIDE.vision_width)
    pair.model.load_published({**pair.learned, reference.VISUAL: empty})
    pair.assert_agree(pair.images(), make_labels(pair, 4))


FAULTS = {
    "missing": lambda tensors, name: tensors.pop(name),
    "unknown": lambda tensors, name: tensors.update({f"{name}.other": tensors[name]}),
    "shape": lambda tensors, name: tensors.update({name: tensors[name][..., :-1]}),
    "nan": lambda tensors, name: tensors[name].view(-1)[-1].fill_(torch.nan),
    "integer": lambda tensors, name: tensors.update({name: tensors[name].long()}),
    "none": lambda tensors, name: tensors.update({name: None}),
}


@pytest.mark.parametrize("fault", FAULTS)
@every_learning_method
def test_published_tensors_that_do_not_fit_are_refused_and_change_nothing(method, fault):
    pair = ReferencePair(SMALL_CONFIGS[method])
    for name in pair.learned:
        tensors = {key: value + 1 for key, value in pair.learned.items()}
        FAULTS[fault](tensors, name)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            pair.model.load_published(tensors)
    for name, value in pair.learned.items():
        assert torch.equal(pair.model.published()[name], value), name


@every_method
def test_features_of_images_and_classes_are_those_of_the_logits(method):
    pair = ReferencePair(SMALL_CONFIGS[method])
    model, images = pair.model.eval(), pair.images()
    with torch.no_grad():
        features, normalized = (model.image_features(images, normalize=n) for n in (False, True))
        expected = model(images, branches=False).logits
        logits = model.clip.logit_scale.exp() * normalized @ model.text_features(normalize=True).T
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
        lengths = features.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(features, lengths * normalized)
        assert (lengths - 1).abs().min() > 0.01
        if not model.config.learns_image:
            assert torch.equal(features, model.clip.encode_image(images).float())
    if model.config.learns_text:
        assert (model.text_features().norm(dim=-1) - 1).abs().min() > 0.01


# Predictions


def test_predict_takes_more_images_than_a_batch_and_refuses_no_classes(monkeypatch):
    pair = ReferencePair(SMALL_CONFIGS["vlp"])
    images = [Image.new("RGB", (23, 29), (40 * i, 0, 0)) for i in range(5)]
    at_once = pair.model.predict(images, top=2)
    monkeypatch.setattr(inference, "PREDICT_BATCH", 2)
    in_parts = pair.model.predict(images, top=2)
    assert [[p.classname for p in row] for row in in_parts] == [
        [p.classname for p in row] for row in at_once
    ]
    with pytest.raises(ValueError, match="top: expected at least 1, got 0"):
        pair.model.predict(images, top=0)


def test_only_paths_are_read_by_several_threads(monkeypatch):
    """Pillow images may share an open file."""
    model, workers = ReferencePair(SMALL_CONFIGS["zeroshot"]).model, []

    def predict_each(images, top, threads):
        yield images, workers.append(threads)

    monkeypatch.setattr(model, "predict_each", predict_each)
    image = Image.new("RGB", (9, 9))
    for images in (["a.png", Path("b.png")], ["a.png", image], image, "a.png"):
        model.predict(images)
    assert workers == [None, 0, 0, None]


def test_predict_takes_files_of_any_kind_and_says_what_it_takes(tmp_path):
    pair = ReferencePair(SMALL_CONFIGS["vlp"])
    image = Image.new("RGB", (23, 29), (40, 90, 0))
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    expected = pair.model.predict(image)
    assert len(expected[0]) == len(next(pair.model.predict_each([image]))[1]) == 5  # of 7 classes
    sources = [str(tmp_path / "a.png"), io.BytesIO(content), image, tmp_path / "a.png"]
    for source in sources:
        assert pair.model.predict(source) == expected
    actual = pair.model.predict(source for source in sources)
    classnames = [p.classname for p in expected[0]]
    assert [[p.classname for p in row] for row in actual] == [classnames] * 4
    for wrong in (content, np.asarray(image), 5, [None]):
        with pytest.raises(ValueError, match="expected a path, a Pillow image or a binary file"):
            pair.model.predict(wrong)
    for shape, kind in [((3, 21, 21), torch.float32), ((1, 3, 21, 21), torch.uint8)]:
        with pytest.raises(ValueError, match=r"floating-point images \(B, 3, 21, 21\), got"):
            pair.model.predict(torch.zeros(shape, dtype=kind))


def test_the_white_level_of_a_model_is_kept_and_used_to_predict(tmp_path):
    pair = ReferencePair(SMALL_CONFIGS["vlp"])
    noise = np.random.default_rng(0).integers(0, 4096, (23, 29)).astype(np.uint16)
    Image.fromarray(noise).save(tmp_path / "a.png")
    plain = pair.model.predict(tmp_path / "a.png")
    pair.model.white_level = WhiteLevel(integer=4095)
    by_white = pair.model.predict(tmp_path / "a.png")
    eight_bits = Image.fromarray((noise * (255 / 4095)).round().astype(np.uint8))
    assert by_white == pair.model.predict(eight_bits) != plain
    pair.model.save(tmp_path / "model.pt")
    again = minidpt.load_model(tmp_path / "model.pt", pair.model.clip)
    assert again.predict(tmp_path / "a.png") == by_white
    assert again.for_classes(["ox", "owl"]).white_level == {"integer": 4095}

    content = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save({**content, "white": {"integer": "bright"}}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="wrong.pt"):
        minidpt.load_model(tmp_path / "wrong.pt", pair.model.clip)
