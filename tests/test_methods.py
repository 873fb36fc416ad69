"""Every method and option of the package against the naive reference, and what must hold of them.

The package runs in fp32; the reference in fp64, so that only the package's rounding is measured.
Logits may differ by 2e-5 (their scale is 14), gradients by 1e-4 of their norm.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torchscript
from golden_cases import RELATIVE, assert_close
from PIL import Image
from tiny_models import (
    DEEP,
    WIDE,
    Sizes,
    clip_state,
    clip_state_in_double,
    double,
    learned_shapes,
    learned_tensors,
    random_images,
    shared_clip,
)
from torch import Tensor

import minidpt
from minidpt import trained
from minidpt.trained import learned_tensors as learned_tensors_of

TEMPLATE = "a photo of a {}."
UNEQUAL = [  # names of 1 to 15 tokens, in no order of length
    "ox",
    "red fox",
    "boeing_747-400",
    "gnu",
    "a quite rare, long-named species of deep-sea anglerfish",
    "U.S. mail co.",  # its stop and the prompt's become one token
    "owl",
]
EQUAL = ["ox", "owl", "dog", "cat", "fly"]  # one token each
METHODS = ["zeroshot", "coop", "vpt", "vlp", "dpt"]
OF_METHOD = {  # small settings of each, with every part that the method has
    "zeroshot": {"method": "zeroshot"},
    "coop": {"method": "coop", "n_ctx": 3},
    "vpt": {"method": "vpt", "n_visual": 3},
    "vlp": {"method": "vlp", "n_ctx": 3, "n_visual": 2},
    "dpt": {"method": "dpt", "n_ctx": 3, "n_visual": 2, "top_k": 3, "class_aware_from": 2},
}
LEARNING = METHODS[1:]

every_method = pytest.mark.parametrize("method", METHODS)
every_learning_method = pytest.mark.parametrize("method", LEARNING)


@pytest.fixture(scope="module", autouse=True)
def clips_stay_as_they_are() -> Iterator[None]:
    yield
    for sizes in (WIDE, DEEP):
        for name, value in shared_clip(sizes).state_dict().items():
            assert torch.equal(value, clip_state(sizes)[name]), name


class Pair:
    """A model of the package and the same learned tensors for the reference."""

    def __init__(
        self,
        config: dict,
        sizes: Sizes = WIDE,
        classnames: list[str] = UNEQUAL,
        template: str = TEMPLATE,
    ):
        self.config, self.sizes, self.template = config, sizes, template
        self.classnames = classnames
        self.clip = shared_clip(sizes)
        self.model = minidpt.build_model(
            self.clip, classnames, template, minidpt.PromptConfig(**config)
        )
        self.learned = learned_tensors(learned_shapes(sizes, len(classnames), config))
        self.model.load_published(self.learned)

    def images(self, count: int = 4) -> Tensor:
        return random_images(self.sizes, count)

    def reference(self, images: Tensor, learned: dict[str, Tensor] | None = None, **options):
        """The reference's outputs, from `learned` or from the loaded tensors."""
        return reference.forward(
            clip_state_in_double(self.sizes),
            double(self.learned) if learned is None else learned,
            images.double(),
            self.classnames,
            self.template,
            minidpt.tokenize,
            method=self.config["method"],
            position=self.config.get("class_token_position", "end"),
            top_k=self.config.get("top_k", 10),
            **options,
        )

    def reference_loss(self, outputs, labels: Tensor, guidance: bool) -> Tensor:
        return reference.losses(
            outputs,
            labels,
            method=self.config["method"],
            guidance=guidance,
            alpha=self.config.get("alpha", 0.3),
        ).total

    def assert_agree(self, images: Tensor, labels: Tensor) -> None:
        """Outputs in training and evaluation; losses and gradients in both stages."""
        learned = double(self.learned, requires_grad=True)
        expected = self.reference(images, learned)
        self.model.eval()
        with torch.no_grad():
            assert_outputs_close(self.model(images), expected)
        self.model.train()
        outputs = self.model(images)
        assert_outputs_close(outputs, expected)
        for guidance in (False, True):
            loss = self.model.loss(outputs, labels, guidance=guidance)
            expected_loss = self.reference_loss(expected, labels, guidance)
            assert_close(loss, expected_loss, f"loss with guidance={guidance}")
            if learned:
                self.model.zero_grad()
                loss.backward(retain_graph=True)
                gradients = torch.autograd.grad(
                    expected_loss, list(learned.values()), retain_graph=True, allow_unused=True
                )
                assert_relative(self.model.published(grad=True), dict(zip(learned, gradients)))


def assert_outputs_close(outputs, expected: reference.Outputs) -> None:
    for field in ("logits", "text_branch_logits", "image_branch_logits", "class_aware_logits"):
        if (value := getattr(expected, field)) is None:
            assert getattr(outputs, field) is None, field
        else:
            assert_close(getattr(outputs, field), value, field)
    if expected.top_classes is None:
        assert outputs.top_classes is None
    else:
        assert torch.equal(outputs.top_classes, expected.top_classes)


def assert_relative(actual: dict[str, Tensor], expected: dict[str, Tensor | None]) -> None:
    """Every tensor within 1e-4 of its norm; None stands for zeros, which must be exact."""
    actual = {name: value for name, value in actual.items() if value.numel()}
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if value is None:
            assert not actual[name].any(), f"{name}: not 0"
            continue
        assert actual[name].shape == value.shape, name
        difference, norm = (actual[name].double() - value).norm().item(), value.norm().item()
        assert difference <= RELATIVE * norm, f"{name}: differs by {difference:.1e} of {norm:.1e}"


def labels_for(pair: Pair, count: int) -> Tensor:
    return torch.arange(count) * 2 % len(pair.classnames)


def check(config: dict, sizes: Sizes = WIDE, classnames: list[str] = UNEQUAL, batch: int = 4, **kw):
    pair = Pair(config, sizes, classnames, **kw)
    pair.assert_agree(pair.images(batch), labels_for(pair, batch))


# Every option of every method


@pytest.mark.parametrize("sizes", [WIDE, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize("classnames", [UNEQUAL, EQUAL], ids=["unequal names", "equal names"])
@every_method
def test_methods_agree_with_the_reference(method, classnames, sizes):
    check(OF_METHOD[method], sizes, classnames)


@pytest.mark.parametrize("csc", [False, True], ids=["generic", "csc"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n_ctx", [1, 2, 5, 16])
def test_text_contexts_agree_with_the_reference(n_ctx, position, csc):
    check({"method": "coop", "n_ctx": n_ctx, "class_token_position": position, "csc": csc})


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("phrase", ["a photo of a", "picture", "one of the many photos"])
def test_contexts_from_a_phrase_agree_with_the_reference(phrase, position):
    config = {"method": "coop", "ctx_init": phrase, "class_token_position": position}
    pair = Pair(config)
    pair.assert_agree(pair.images(), labels_for(pair, 4))


@pytest.mark.parametrize("template", ["{} texture.", "itap of many {}, a type of pet."])
@every_method
def test_templates_agree_with_the_reference(method, template):
    check(OF_METHOD[method], template=template)


@pytest.mark.parametrize("n_visual", [0, 1, 10])
@pytest.mark.parametrize("method", ["vpt", "vlp", "dpt"])
def test_numbers_of_visual_prompts_agree_with_the_reference(method, n_visual):
    check({**OF_METHOD[method], "n_visual": n_visual})


@pytest.mark.parametrize("visual_layers", [1, 2, 5])
@pytest.mark.parametrize("method", ["vpt", "vlp", "dpt"])
def test_shallow_visual_prompts_agree_with_the_reference(method, visual_layers):
    config = {**OF_METHOD[method], "visual_layers": visual_layers}
    check(config | {"class_aware_from": 3} if method == "dpt" else config, DEEP)


@pytest.mark.parametrize("class_aware_from", [None, 1, 2, 3, 4, 5])
def test_first_class_aware_layers_agree_with_the_reference(class_aware_from):
    check({**OF_METHOD["dpt"], "class_aware_from": class_aware_from}, DEEP)


@pytest.mark.parametrize("top_k", [1, 2, len(UNEQUAL), 20])
def test_numbers_of_selected_classes_agree_with_the_reference(top_k):
    check({**OF_METHOD["dpt"], "top_k": top_k})


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
def test_weights_of_the_auxiliary_loss_agree_with_the_reference(alpha):
    check({**OF_METHOD["dpt"], "alpha": alpha})


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True], ids=["generic", "csc"])
@pytest.mark.parametrize("method", ["vlp", "dpt"])
def test_both_sides_together_agree_with_the_reference(method, csc, position):
    config = {**OF_METHOD[method], "csc": csc, "class_token_position": position, "n_ctx": 5}
    check({**config, "top_k": 20, "class_aware_from": 1} if method == "dpt" else config)


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("csc", [False, True])
def test_classes_in_chunks_agree_with_the_reference(csc, chunk):
    pair = Pair({**OF_METHOD["dpt"], "csc": csc})
    pair.model.class_chunk = chunk
    pair.assert_agree(pair.images(), labels_for(pair, 4))


def test_classes_are_encoded_in_chunks_where_all_would_take_too_much_memory(monkeypatch):
    config = OF_METHOD["vlp"]
    clip = minidpt.build_clip(clip_state(WIDE))
    names = [f"ox {n}" for n in range(200)]

    def chunk(memory: int, dtype: torch.dtype = torch.float32) -> int | None:
        monkeypatch.setattr(minidpt.model, "TEXT_MEMORY", memory)
        options = minidpt.PromptConfig(**config)
        return minidpt.build_model(clip.cast(dtype), names, TEMPLATE, options).class_chunk

    assert chunk(10**9) is None
    small, large = chunk(1_000_000), chunk(2_000_000)
    assert 1 < small < large < 200 and large == pytest.approx(2 * small, abs=1)
    assert chunk(1) == 1
    half = chunk(1_000_000, torch.bfloat16)
    assert half == pytest.approx(2 * small, abs=1)


@every_learning_method
def test_without_the_branches_the_rest_is_the_same_bit_for_bit(method):
    pair = Pair(OF_METHOD[method])
    images, labels = pair.images(), labels_for(pair, 4)
    results = []
    for branches in (True, False):
        output = pair.model(images, branches=branches)
        pair.model.zero_grad()
        pair.model.loss(output, labels).backward()
        results.append((output, pair.model.published(grad=True)))
    (all_of_it, gradients), (output, same_gradients) = results
    assert output.text_branch_logits is None and output.image_branch_logits is None
    for field in ("logits", "top_classes", "class_aware_logits"):
        value, expected = getattr(output, field), getattr(all_of_it, field)
        assert value is expected is None or torch.equal(value, expected), field
    for name, value in gradients.items():
        assert torch.equal(value, same_gradients[name]), name


def test_without_the_branches_vlp_makes_no_frozen_pass(monkeypatch):
    pair = Pair(OF_METHOD["vlp"])
    passes = []
    encode = pair.clip.visual.encode
    monkeypatch.setattr(pair.clip.visual, "encode", lambda x: passes.append(x) or encode(x))
    pair.model(pair.images(), branches=False)
    assert not passes
    pair.model(pair.images())
    assert len(passes) == 1


@pytest.mark.parametrize("method", ["vlp", "dpt"])
def test_guidance_without_the_branches_is_refused(method):
    pair = Pair(OF_METHOD[method])
    output = pair.model(pair.images(), branches=False)
    with pytest.raises(ValueError, match="branches=True"):
        pair.model.loss(output, labels_for(pair, 4), guidance=True)


def test_the_defaults_agree_with_the_reference():
    check({"method": "dpt"}, DEEP)


@pytest.mark.parametrize("batch", [1, 11])
@every_method
def test_batches_of_any_size_agree_with_the_reference(method, batch):
    check(OF_METHOD[method], batch=batch)


@every_method
def test_two_classes_one_of_whom_begins_the_other_agree_with_the_reference(method):
    check(OF_METHOD[method], classnames=["ox", "ox and a very red fox"], batch=3)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_classes_of_one_name_agree_with_the_reference(position):
    config = {**OF_METHOD["vlp"], "class_token_position": position}
    check(config, classnames=["crane", "gnu", "crane"])
    check({**config, "csc": True}, classnames=["crane", "crane"])
    check({"method": "zeroshot"}, classnames=["crane", "crane"])


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_prompt_that_fills_all_77_places_agrees_with_the_reference(position):
    longest = " ".join(["ox"] * (77 - 3 - 5))  # SOS, stop, EOT; the context
    config = {"method": "coop", "n_ctx": 5, "class_token_position": position}
    check(config, classnames=["gnu", longest, "red fox"])
    with pytest.raises(ValueError, match="78 tokens"):
        Pair(config, classnames=["gnu", longest + " ox", "red fox"])


@pytest.mark.parametrize("guidance", [False, True])
def test_no_label_among_the_selected_classes_adds_nothing_to_the_loss(guidance):
    pair = Pair({**OF_METHOD["dpt"], "top_k": 2})
    images = pair.images(3)
    outputs = pair.model(images)
    labels = torch.tensor([min(set(range(7)) - set(row.tolist())) for row in outputs.top_classes])
    loss = pair.model.loss(outputs, labels, guidance=guidance)
    without = reference.losses(
        pair.reference(images), labels, method="vlp", guidance=guidance
    ).total
    assert_close(loss, without, "loss")
    pair.assert_agree(images, labels)
    assert all(gradient.isfinite().all() for gradient in pair.model.published(grad=True).values())


# Equalities that need no reference


def logits_of(config: dict, learned: dict[str, Tensor] | None = None, count: int = 4) -> Tensor:
    model = Pair(config).model.eval()
    if learned is not None:
        model.load_published(learned)
    with torch.no_grad():
        return model(random_images(WIDE, count)).logits


def test_without_visual_prompts_vlp_is_coop_and_vpt_is_zero_shot():
    coop = logits_of({"method": "coop", "n_ctx": 3})
    assert_close(logits_of({"method": "vlp", "n_ctx": 3, "n_visual": 0}), coop, "VLP")
    zero_shot = logits_of({"method": "zeroshot"})
    assert_close(logits_of({"method": "vpt", "n_visual": 0}), zero_shot, "VPT")
    assert (coop - zero_shot).abs().max() > 0.1


def test_the_template_as_context_is_zero_shot():
    config = minidpt.PromptConfig(method="coop", ctx_init="a photo of a")
    clip = minidpt.build_clip(clip_state(WIDE))
    model = minidpt.build_model(clip, UNEQUAL, TEMPLATE, config).eval()
    with torch.no_grad():
        logits = model(random_images(WIDE, 4)).logits
    assert_close(logits, logits_of({"method": "zeroshot"}), "logits")


def test_more_selected_classes_than_classes_are_all_classes():
    clipped = Pair({**OF_METHOD["dpt"], "top_k": 1000})
    outputs = clipped.model(clipped.images())
    assert outputs.top_classes.sort(dim=-1).values.tolist() == [list(range(7))] * 4
    all_classes = logits_of({**OF_METHOD["dpt"], "top_k": 7})
    assert_close(outputs.logits, all_classes, "logits")


def test_the_order_of_the_selected_classes_does_not_change_the_logits():
    pair, order = Pair({**OF_METHOD["dpt"], "top_k": 4}), [2, 0, 3, 1]
    images = pair.images()
    with torch.no_grad():
        outputs = pair.model(images)
        shuffled = outputs.top_classes[:, order]
        tokens, (g, _, keys) = pair.clip.visual.embed(images), pair.model.prepared()
        features, class_logits = pair.model.encode_tokens(tokens, keys, g[shuffled])
    cosines = reference.normalize(features) @ reference.normalize(g).t()
    assert_close(pair.clip.logit_scale.exp() * cosines, outputs.logits, "logits")
    assert_close(class_logits, outputs.class_aware_logits[:, :, order], "class-aware logits")
    expected = pair.reference(images, top_classes=shuffled)
    assert_close(outputs.logits, expected.logits, "logits of the reference")
    assert_close(class_logits, expected.class_aware_logits, "auxiliary logits of the reference")


def test_classes_in_another_order_only_reorder_the_outputs():
    config = {**OF_METHOD["dpt"], "csc": True}
    pair, order = Pair(config), [4, 6, 0, 3, 5, 1, 2]
    learned = {
        name: value[order] if name == reference.CONTEXT or ".classfiers." in name else value
        for name, value in pair.learned.items()
    }
    reordered = Pair(config, classnames=[UNEQUAL[c] for c in order])
    reordered.model.load_published(learned)
    with torch.no_grad():
        outputs, moved = pair.model(pair.images()), reordered.model(pair.images())
    assert_close(moved.logits, outputs.logits[:, order], "logits")
    assert_close(moved.class_aware_logits, outputs.class_aware_logits[..., order], "auxiliary")
    assert torch.equal(torch.tensor(order)[moved.top_classes], outputs.top_classes)


@every_method
def test_an_image_alone_has_the_logits_that_it_has_in_a_batch(method):
    pair = Pair(OF_METHOD[method])
    pair.model.eval()
    with torch.no_grad():
        together = pair.model(pair.images()).logits
        alone = torch.cat([pair.model(image[None]).logits for image in pair.images()])
    assert_close(alone, together, "logits")


def test_selected_classes_are_zero_shots_best_first_and_no_prompt_changes_them():
    pair = Pair({**OF_METHOD["dpt"], "top_k": 4})
    zero_shot = logits_of({"method": "zeroshot"})
    best_first = zero_shot.argsort(dim=-1, descending=True)[:, :4]
    with torch.no_grad():
        assert torch.equal(pair.model(pair.images()).top_classes, best_first)
        for value in pair.model.parameters():
            if value.requires_grad:
                value.neg_()
        assert torch.equal(pair.model(pair.images()).top_classes, best_first)
    assert len(best_first.unique(dim=0)) > 1  # the images differ in their best classes


@every_method
def test_a_saved_model_has_bit_equal_logits_when_loaded(method, tmp_path):
    pair = Pair({**OF_METHOD[method], "class_token_position": "middle"})
    pair.model.save(tmp_path / "model.pt")
    loaded = minidpt.load_model(tmp_path / "model.pt", clip=pair.clip)
    pair.model.eval(), loaded.eval()
    with torch.no_grad():
        assert torch.equal(loaded(pair.images()).logits, pair.model(pair.images()).logits)
    for name, value in pair.model.published().items():
        assert torch.equal(loaded.published()[name], value), name
    assert loaded.published().keys() == pair.model.published().keys()


@every_method
def test_a_loaded_model_predicts_by_the_saved_text_features_without_encoding_a_text(
    method, tmp_path, monkeypatch
):
    pair, path = Pair(OF_METHOD[method]), tmp_path / "model.pt"
    predicted = pair.model.predict(pair.images())
    pair.model.save(path)
    monkeypatch.setattr(minidpt.CLIP, "encode_prompts", lambda *_: pytest.fail("a text is encoded"))
    loaded = minidpt.load_model(path, pair.clip)
    path.write_bytes(bytes(path.stat().st_size))  # what was read is no longer the mapped file
    assert loaded.predict(pair.images()) == predicted


@pytest.mark.parametrize(
    "change", ["nothing", "ctx", "names", "template", "position", "precision", "device"]
)
def test_saved_text_features_that_follow_from_anything_else_are_not_used(
    change, tmp_path, monkeypatch
):
    pair, path, clip = Pair(OF_METHOD["dpt"]), tmp_path / "model.pt", shared_clip(WIDE)
    if change == "device":
        computed_on = property(lambda clip: torch.device("cuda"))
        monkeypatch.setattr(minidpt.CLIP, "device", computed_on)
        fingerprint = trained.text_fingerprint(
            clip, UNEQUAL, TEMPLATE, pair.model.config, pair.model.learned()
        )
        monkeypatch.undo()
    pair.model.save(path)
    content = torch.load(path, weights_only=True)
    for name in ("template", "learned"):
        content["text_features"][name] += 1  # a model that takes them shows it
    if change == "ctx":
        content["learned"]["text_prompts.ctx"][0, 0] += 1
    elif change == "names":
        content["classnames"].reverse()
    elif change == "template":
        content["template"] = "a sketch of a {}."
    elif change == "position":
        content["config"]["class_token_position"] = "front"
    elif change == "precision":
        clip = minidpt.build_clip(clip_state(WIDE)).cast(torch.bfloat16)
    elif change == "device":
        content["text_features"]["fingerprint"] = fingerprint
    torch.save(content, path)
    loaded = minidpt.load_model(path, clip)
    del content["text_features"]  # as earlier versions wrote it
    torch.save(content, path)
    expected = minidpt.load_model(path, clip)
    computed = change != "nothing"
    assert torch.equal(loaded.template_features, expected.template_features) is computed
    with torch.no_grad():
        assert torch.equal(loaded.text_features(), expected.text_features()) is computed


def test_text_features_may_be_left_out_of_a_model_file(tmp_path):
    Pair(OF_METHOD["dpt"]).model.save(tmp_path / "model.pt", text_features=False)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["text_features"] == {"fingerprint": ""}


def test_names_and_numbers_of_numpy_are_saved_as_pythons(tmp_path):
    clip = minidpt.build_clip(clip_state(WIDE))
    config = minidpt.PromptConfig(n_ctx=np.int64(3), top_k=np.int32(2), alpha=np.float64(0.2))
    minidpt.build_model(clip, np.array(UNEQUAL), TEMPLATE, config).save(tmp_path / "model.pt")
    loaded = minidpt.load_model(tmp_path / "model.pt", clip)
    assert (loaded.classnames, loaded.config) == (list(UNEQUAL), config)
    with pytest.raises(TypeError):
        minidpt.PromptConfig(n_ctx=2.5)


def test_other_classes_and_loading_leave_the_random_numbers_alone(tmp_path):
    pair = Pair(OF_METHOD["dpt"])
    pair.model.save(tmp_path / "model.pt")
    state = torch.get_rng_state()
    pair.model.for_classes(["ox", "owl"])
    minidpt.load_model(tmp_path / "model.pt", clip=pair.clip)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_model_is_refused_with_what_is_wrong_and_one_being_written_replaces_none(
    tmp_path, monkeypatch
):
    pair, path = Pair(OF_METHOD["dpt"]), tmp_path / "model.pt"
    pair.model.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="model.pt: cut short"):
        minidpt.load_model(path)

    def interrupted(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair.model.save(path)
    assert path.read_bytes() == whole[:-1000] and list(tmp_path.iterdir()) == [path]


def test_a_template_that_is_too_long_for_a_class_names_it():
    clip = minidpt.build_clip(clip_state(WIDE))
    with pytest.raises(ValueError, match="class 'long long.* tokens, CLIP takes 77: shorten the"):
        minidpt.build_model(clip, ["ox", "long " * 80], TEMPLATE)


def test_a_model_saved_with_one_clip_is_refused_with_another(tmp_path):
    Pair(OF_METHOD["dpt"]).model.save(tmp_path / "model.pt")
    other = minidpt.build_clip(clip_state(WIDE, seed=1))
    with pytest.raises(ValueError, match="CLIP"):
        minidpt.load_model(tmp_path / "model.pt", clip=other)


@pytest.mark.parametrize("content", [torch.zeros(2), [1, 2], {"format": "minidpt 1"}, "text"])
def test_a_file_of_another_kind_is_no_model(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected one that minidpt saved"):
        minidpt.load_model(tmp_path / "model.pt")


def test_a_torchscript_archive_is_no_model_and_is_not_run(tmp_path, monkeypatch):
    """torch.load of 2.4 hands one to torch.jit.load, also with `weights_only`."""
    with torchscript.still_used():
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(2)).save(str(tmp_path / "model.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(ValueError, match="expected one that minidpt saved"):
        minidpt.load_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cocoop"}, "cocoop.*zeroshot, coop, vpt, vlp, dpt"),
        ({"class_token_position": "start"}, "start.*end, middle, front"),
        ({"class_aware_from": 4}, "1 to 3"),
        ({"class_aware_from": 0}, "class_aware_from.*0"),
        ({"n_ctx": 0}, "n_ctx.*0"),
        ({"top_k": 0}, "top_k.*0"),
        ({"alpha": -0.1}, "alpha.*-0.1"),
        ({"alpha": float("nan")}, "alpha.*nan"),
        ({"alpha": 10**40}, "alpha: .* got a int"),
        ({"n_ctx": 10**11}, "n_ctx: expected at least 1 and at most 1000, got 100000000000"),
        ({"n_ctx": 78}, "n_ctx: 78 context vectors, but CLIP takes 77 tokens"),
        ({"n_visual": 10**11}, "n_visual.*at most 1000"),
        ({"top_k": np.int64(10**11)}, "top_k.*at most 1000000, got 100000000000"),
        ({"csc": 1}, "csc.*bool"),
        ({"ctx_init": 5}, "ctx_init.*5"),
        ({"method": [["dpt"]]}, "method a list: expected one of zeroshot"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_is_expected(options, message):
    with pytest.raises(ValueError, match=message):
        Pair(OF_METHOD["dpt"] | options)


@pytest.mark.parametrize(
    "option",
    [{"n_ctx": True}, {"n_ctx": "16"}, {"n_ctx": None}, {"n_visual": 2.0}, {"top_k": "5"},
     {"class_aware_from": "2"}, {"visual_layers": False}, {"alpha": "0.3"}, {"alpha": True}],
)  # fmt: skip
def test_an_option_that_is_no_number_is_refused_by_name(option):
    (name,) = option
    with pytest.raises(TypeError, match=f"^{name}: expected a (whole )?number, got "):
        minidpt.PromptConfig(**option)


@pytest.mark.parametrize(
    ("classnames", "message"),
    [
        ("ox", "two class names, .* got 'ox'"),
        (["ox", 5], "a class's name, up to 500 bytes, .* got 5"),
        (["ox", "x" * 1001], "up to 500 bytes, .* got 'xxx"),
        (["ox", " _"], "a class's name, .* got ' _'"),
        (["ox"] * 25_001, "at most 25,000, got 25,001"),
    ],
)
def test_class_names_that_are_none_are_refused(classnames, message):
    with pytest.raises(ValueError, match=message) as error:
        minidpt.build_model(minidpt.build_clip(clip_state(WIDE)), classnames, TEMPLATE)
    assert len(str(error.value)) < 500


CTX, NO_NUMBERS = "text_prompts.ctx", torch.full((16, 64), torch.nan)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("format", ["minidpt 1"], "'format' .*got a list"),
        ("format", "minidpt 99\n" + "x" * 10**6, "format 'minidpt 99.nx"),
        ("learned", 5, "learned: expected named entries, got 5"),
        ("learned", {5: torch.zeros(1), "x": torch.zeros(1)}, "learned: expected named entries"),
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
        ("config", None, "config: expected named entries, got None"),
        ("config n_ctx", 50_000_000, "n_ctx: .*at most 1000, got 50000000"),
        ("config n_ctx", 17, r"is \(16, 64\), expected \(17, 64\)"),
        ("config ctx_init", 5, "ctx_init.*5"),
        ("config csc", True, r"is \(16, 64\), expected \(3, 16, 64\)"),
        ("config alpha", float("nan"), "alpha: .*got nan"),
        ("config n_visual", 1000, r"is \(2, 2, 128\), expected \(2, 1000, 128\)"),
        ("config class_aware_from", 1, "missing class_aware"),
        ("config visual_layers", 99, "visual_layers: expected 1 to 3 of this CLIP, got 99"),
        ("config other", 1, "unexpected keyword argument 'other'"),
        ("clip", [], "clip: expected named entries, got a list"),
        ("clip fingerprint", None, "'fingerprint' .*got None"),
        ("clip fingerprint", "0" * 64, "were learned with the weights of custom .000000000000…"),
        ("clip name", 5, "'name' .*got 5"),
        ("clip quick_gelu", 1, "'quick_gelu' .*got 1"),
        ("text_features", None, "text_features: expected named entries, got None"),
        ("text_features fingerprint", 5, "'fingerprint' .*got 5"),
        (
            "text_features template",
            torch.zeros(3, 36),
            r"template is \(3, 36\), expected \(3, 37\)",
        ),
        ("text_features learned", NO_NUMBERS, r"text features: learned is"),
        ("text_features other", torch.zeros(1), "text features: unknown other"),
    ],
)
def test_a_model_file_with_a_wrong_entry_is_refused_and_the_entry_named(
    tmp_path, entry, value, message
):
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
    for csc, ctx_init, method in itertools.product((0, 1), (None, "a photo of a"), OF_METHOD):
        config = minidpt.PromptConfig(method=method, csc=bool(csc), ctx_init=ctx_init)
        clip = minidpt.build_clip(clip_state(WIDE))
        learned = minidpt.build_model(clip, UNEQUAL, TEMPLATE, config).learned()
        expected = learned_tensors_of(clip, len(UNEQUAL), config)
        assert {k: v.shape for k, v in learned.items()} == {k: v.shape for k, v in expected.items()}
        assert all(value.is_meta for value in expected.values())


def test_one_class_and_a_template_without_a_place_for_the_name_are_refused():
    with pytest.raises(ValueError, match="two class"):
        Pair(OF_METHOD["coop"], classnames=["ox"])
    with pytest.raises(ValueError, match="{}"):
        Pair(OF_METHOD["coop"], template="a photo")


# Learned tensors


@every_learning_method
@pytest.mark.parametrize("class_aware_from", [1, 2])
def test_published_tensors_come_back_as_they_were_loaded(method, class_aware_from):
    pair = Pair({**OF_METHOD[method], "class_aware_from": class_aware_from})
    published = {name: value for name, value in pair.model.published().items() if value.numel()}
    assert published.keys() == pair.learned.keys()
    for name, value in pair.learned.items():
        assert torch.equal(published[name], value), name


def test_class_aware_prompts_in_all_layers_load_with_and_without_an_empty_visual_tensor():
    pair = Pair({**OF_METHOD["dpt"], "class_aware_from": 1, "n_visual": 2})
    assert reference.VISUAL not in pair.learned
    empty = torch.empty(0, 2, WIDE.vision_width)
    pair.model.load_published({**pair.learned, reference.VISUAL: empty})
    pair.assert_agree(pair.images(), labels_for(pair, 4))


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "nan", "integer", "none"])
@every_learning_method
def test_published_tensors_that_do_not_fit_are_refused_and_change_nothing(method, fault):
    pair = Pair(OF_METHOD[method])
    for name in pair.learned:
        tensors = {key: value + 1 for key, value in pair.learned.items()}
        if fault == "missing":
            del tensors[name]
        elif fault == "unknown":
            tensors[name + ".other"] = tensors[name]
        elif fault == "nan":
            tensors[name].view(-1)[-1] = torch.nan
        elif fault == "integer":
            tensors[name] = tensors[name].long()
        elif fault == "none":
            tensors[name] = None
        else:
            tensors[name] = tensors[name][..., :-1]
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            pair.model.load_published(tensors)
    for name, value in pair.learned.items():
        assert torch.equal(pair.model.published()[name], value), name


def test_fresh_prompts_are_drawn_as_the_paper_says():
    torch.manual_seed(0)
    config = minidpt.PromptConfig(method="dpt", class_aware_from=4, n_ctx=32, n_visual=30)
    clip = minidpt.build_clip(clip_state(DEEP))
    published = minidpt.build_model(clip, UNEQUAL, TEMPLATE, config).published()
    for name, value in published.items():
        value = value.detach()
        if name.endswith(".ctx"):  # N(0, 0.02²): 1280 values or more, so within 6 %
            assert value.std().item() == pytest.approx(0.02, rel=0.06), name
            assert value.abs().max() > 0.05, name
        elif ".lns" in name:
            assert (value == float(name.endswith("weight"))).all(), name
        else:  # torch's default for Linear: uniform within 1/√inputs
            inputs = DEEP.embedding if ".meta_nets." in name else DEEP.vision_width
            bound = 1 / math.sqrt(inputs)
            assert 0.9 * bound < value.abs().max() <= bound, name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name


def test_a_context_from_a_phrase_starts_as_its_words_embeddings():
    config = minidpt.PromptConfig(method="coop", ctx_init="a photo of a", n_ctx=16)
    clip = minidpt.build_clip(clip_state(WIDE))
    published = minidpt.build_model(clip, UNEQUAL, TEMPLATE, config).published()
    phrase = reference.initial_context(clip_state(WIDE), "a photo of a", minidpt.tokenize)
    assert torch.equal(published[reference.CONTEXT], phrase)


# What evaluation keeps


def change_by_optimizer(pair: Pair) -> None:
    groups = minidpt.parameter_groups(pair.model, visual_lr=0.5, text_lr=0.5)
    optimizer = torch.optim.SGD(groups)
    outputs = pair.model.train()(pair.images())
    pair.model.loss(outputs, labels_for(pair, 4)).backward()
    optimizer.step()


def change_by_optimizer_in_eval_mode(pair: Pair) -> None:
    change_by_optimizer(pair)
    pair.model.eval()
    with torch.no_grad():
        pair.model(pair.images())
    change_by_optimizer(pair)


def change_by_loading(pair: Pair) -> None:
    pair.model.load_published({name: value.flip(0) for name, value in pair.learned.items()})


def change_in_place(pair: Pair) -> None:
    with torch.no_grad():
        for parameter in pair.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(-1)


def change_by_state_dict(pair: Pair) -> None:
    state = pair.model.state_dict()
    names = {name for name, value in pair.model.named_parameters() if value.requires_grad}
    pair.model.load_state_dict({k: v.flip(0) if k in names else v for k, v in state.items()})


CHANGES = [
    change_by_optimizer,
    change_by_optimizer_in_eval_mode,
    change_by_loading,
    change_in_place,
    change_by_state_dict,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@every_learning_method
def test_evaluation_follows_a_change_of_the_learned_tensors(method, change):
    pair = Pair(OF_METHOD[method])
    images = pair.images()
    with torch.no_grad():
        before = pair.model.eval()(images).logits
        assert torch.equal(pair.model(images).logits, before)
    change(pair)
    learned = {name: value.double() for name, value in pair.model.published().items()}
    with torch.no_grad():
        after = pair.model.eval()(images).logits
    assert_close(after, pair.reference(images, learned).logits, "logits after the change")
    assert (after - before).abs().max() > 1e-3


@every_learning_method
def test_evaluation_mode_gives_gradients_where_they_are_asked_for(method):
    pair = Pair(OF_METHOD[method])
    pair.model.eval()
    with torch.inference_mode():  # what this keeps must not stop the gradients below
        pair.model(pair.images())
    labels = labels_for(pair, 4)
    pair.model.loss(pair.model(pair.images()), labels, guidance=True).backward()
    in_evaluation = {name: value.clone() for name, value in pair.model.published(grad=True).items()}
    pair.model.zero_grad()
    pair.model.train()
    pair.model.loss(pair.model(pair.images()), labels, guidance=True).backward()
    expected = {name: value.double() for name, value in pair.model.published(grad=True).items()}
    assert_relative(in_evaluation, expected)


def test_a_copy_does_not_share_what_evaluation_keeps():
    pair = Pair(OF_METHOD["dpt"])
    with torch.no_grad():
        before = pair.model.eval()(pair.images()).logits
        other = copy.deepcopy(pair.model)
        other.load_published({name: value.flip(0) for name, value in pair.learned.items()})
        changed = other(pair.images()).logits
        assert (changed - before).abs().max() > 1e-3
        assert torch.equal(pair.model(pair.images()).logits, before)


# What is trained, and how fast


@every_method
def test_nothing_of_clip_gets_a_gradient_and_every_learned_tensor_does(method):
    pair = Pair(OF_METHOD[method])
    loss = pair.model.loss(pair.model(pair.images()), labels_for(pair, 4), guidance=True)
    assert loss.requires_grad == (method != "zeroshot")
    if method != "zeroshot":
        loss.backward()
    assert all(value.grad is None for value in pair.clip.parameters())
    assert not any(value.requires_grad for value in pair.clip.parameters())
    trained = [value for value in pair.model.parameters() if value.requires_grad]
    assert all(value.grad is not None and value.grad.any() for value in trained)
    assert sum(v.numel() for v in trained) == sum(v.numel() for v in pair.learned.values())
    assert all(value.dtype == torch.float32 for value in trained)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (OF_METHOD["zeroshot"], []),
        (OF_METHOD["coop"], [0.002]),
        (OF_METHOD["vpt"], [0.01]),
        (OF_METHOD["vlp"], [0.01, 0.002]),
        (OF_METHOD["dpt"], [0.01, 0.002]),
        ({**OF_METHOD["vpt"], "n_visual": 0}, []),
        ({**OF_METHOD["vlp"], "n_visual": 0}, [0.002]),
        ({**OF_METHOD["dpt"], "class_aware_from": 1}, [0.01, 0.002]),
    ],
)
def test_parameter_groups_are_the_sides_that_learn_image_side_first(config, rates):
    pair = Pair(config)
    groups = minidpt.parameter_groups(pair.model, visual_lr=0.01, text_lr=0.002)
    assert [group["lr"] for group in groups] == rates
    assert all(group["params"] and all(p.numel() for p in group["params"]) for group in groups)
    grouped = [id(value) for group in groups for value in group["params"]]
    trained = [id(v) for v in pair.model.parameters() if v.requires_grad and v.numel()]
    assert sorted(grouped) == sorted(trained)
    context = pair.learned.get(reference.CONTEXT)
    if context is not None:
        assert sum(p.numel() for p in groups[-1]["params"]) == context.numel()


def test_learning_rates_are_those_worked_out_by_hand():
    rates = [minidpt.learning_rate(e, 0.01, epochs=6, warmup_epochs=2) for e in range(6)]
    # 1e-5 twice; then 0.005·(1 + cos(0°, 30°, 60°, 90°)): the last is not 0
    by_hand = [1e-5, 1e-5, 0.01, 0.00933012702, 0.0075, 0.005]
    assert rates == pytest.approx(by_hand, rel=1e-9)
    assert minidpt.learning_rate(0, 0.002, epochs=50, warmup_epochs=0) == 0.002
    assert minidpt.learning_rate(25, 0.002, epochs=50, warmup_epochs=0) == pytest.approx(0.001)


@pytest.mark.parametrize("how", ["a fused step", "writing into its data"])
def test_a_changed_context_changes_what_is_predicted(how):
    """Neither counts as a change in autograd's books (`_version`)."""
    pair = Pair(OF_METHOD["coop"])
    images, labels = pair.images(), labels_for(pair, 4)
    ctx = pair.model.text_prompts.ctx
    optimizer = torch.optim.SGD([ctx], lr=1.0, fused=True)
    pair.model.loss(pair.model(images), labels).backward()
    with torch.no_grad():  # after the gradient: the training accuracy, for example
        before = pair.model.eval()(images).logits
    if how == "a fused step":
        optimizer.step()
    else:
        ctx.data.add_(1)
    with torch.no_grad():
        after = pair.model.eval()(images).logits
        pair.model._kept = None
        afresh = pair.model(images).logits
    assert torch.equal(after, afresh) and not torch.equal(after, before)


def test_logits_are_fp32_inside_autocast():
    pair = Pair(OF_METHOD["dpt"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = pair.model(pair.images())
    logits = [value for value in outputs if value is not None and value.is_floating_point()]
    assert len(logits) == 4
    assert all(value.dtype == torch.float32 for value in logits)


def test_classes_are_selected_in_fp32_inside_autocast():
    pair = Pair(OF_METHOD["dpt"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so close that half precision would not tell classes apart
        pair.model.template_features[:] = pair.model.template_features[:1]
        pair.model.template_features += 1e-4 * torch.randn(
            pair.model.template_features.shape, generator=generator
        )
    frozen = pair.model.template_features[[0, 1, 1, 2]]
    expected = pair.model(pair.images(), frozen).top_classes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pair.model(pair.images(), frozen).top_classes, expected)


def test_evaluation_keeps_no_text_features_of_another_precision():
    model = Pair(OF_METHOD["coop"]).model.eval()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model.text_features()
        exact = model.text_features()
        assert not torch.equal(rounded, exact)
    assert torch.equal(exact, model.text_features().detach())


def test_more_prompted_layers_than_the_model_has_are_refused():
    with pytest.raises(ValueError, match="visual_layers: expected 1 to 3 .* got 4"):
        Pair({**OF_METHOD["vpt"], "visual_layers": 4})


def test_predict_takes_more_pictures_than_a_batch_and_refuses_no_classes(monkeypatch):

    pair = Pair(OF_METHOD["vlp"])
    pictures = [Image.new("RGB", (23, 29), (40 * i, 0, 0)) for i in range(5)]
    at_once = pair.model.predict(pictures, top=2)
    monkeypatch.setattr(trained, "PREDICT_BATCH", 2)
    in_parts = pair.model.predict(pictures, top=2)
    assert [[p.classname for p in row] for row in in_parts] == [
        [p.classname for p in row] for row in at_once
    ]
    with pytest.raises(ValueError, match="top: expected at least 1, got 0"):
        pair.model.predict(pictures, top=0)


def test_predict_takes_files_of_any_kind_and_says_what_it_takes(tmp_path):
    pair = Pair(OF_METHOD["vlp"])
    picture = Image.new("RGB", (23, 29), (40, 90, 0))
    picture.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    expected = pair.model.predict(picture)
    sources = [str(tmp_path / "a.png"), io.BytesIO(content), picture, tmp_path / "a.png"]
    for source in sources:
        assert pair.model.predict(source) == expected
    found = pair.model.predict(source for source in sources)
    assert [[p.classname for p in row] for row in found] == [[p.classname for p in expected[0]]] * 4
    for wrong in (content, np.asarray(picture), 5, [None]):
        with pytest.raises(ValueError, match="expected a path, a Pillow image or a binary file"):
            pair.model.predict(wrong)
    for shape, kind in [((3, 21, 21), torch.float32), ((1, 3, 21, 21), torch.uint8)]:
        with pytest.raises(ValueError, match=r"expected floats \(B, 3, 21, 21\) from preprocess"):
            pair.model.predict(torch.zeros(shape, dtype=kind))


def test_the_white_of_a_model_is_kept_and_used_to_predict(tmp_path):
    pair = Pair(OF_METHOD["vlp"])
    noise = np.random.default_rng(0).integers(0, 4096, (23, 29)).astype(np.uint16)
    Image.fromarray(noise).save(tmp_path / "a.png")
    plain = pair.model.predict(tmp_path / "a.png")
    pair.model.white = {"integer": 4095}
    by_white = pair.model.predict(tmp_path / "a.png")
    eight_bits = Image.fromarray((noise * (255 / 4095)).round().astype(np.uint8))
    assert by_white == pair.model.predict(eight_bits) != plain
    pair.model.save(tmp_path / "model.pt")
    again = minidpt.load_model(tmp_path / "model.pt", pair.model.clip)
    assert again.predict(tmp_path / "a.png") == by_white
    assert again.for_classes(["ox", "owl"]).white == {"integer": 4095}

    content = torch.load(tmp_path / "model.pt", weights_only=True)
    del content["white"]  # as earlier versions wrote it
    torch.save(content, tmp_path / "old.pt")
    assert minidpt.load_model(tmp_path / "old.pt", pair.model.clip).white is None
    torch.save({**content, "white": {"integer": "bright"}}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="wrong.pt"):
        minidpt.load_model(tmp_path / "wrong.pt", pair.model.clip)
