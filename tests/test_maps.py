"""Attention maps against every layer, head and token written out, in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import reference
from helpers.reference_pair import SMALL_CONFIGS, UNEQUAL_NAMES, ReferencePair
from helpers.tiny_models import clip_state_in_double, to_double
from torch import Tensor

import minidpt

PRECISE = dict(rtol=0, atol=5e-6)  # of shares that sum to 1 over 9 patches; fp32 has 1e-7
every_method = pytest.mark.parametrize("method", SMALL_CONFIGS)


def naive_class_token_map(clip: reference.Tensors, name: str, x: Tensor) -> Tensor:
    """All tokens ask all tokens (B, T, D), head by head; the class token's row over 9 patches."""
    normed = reference.layer_norm(x, clip[f"{name}.ln_1.weight"], clip[f"{name}.ln_1.bias"])
    weight, bias = clip[f"{name}.attn.in_proj_weight"], clip[f"{name}.attn.in_proj_bias"]
    q, k, _ = reference.linear(normed, weight, bias).chunk(3, dim=-1)
    heads = x.shape[-1] // 64
    mean = 0
    for head in range(heads):
        columns = slice(64 * head, 64 * (head + 1))
        scores = (q[..., columns] @ k[..., columns].transpose(1, 2) / math.sqrt(64)).exp()
        mean = mean + scores / scores.sum(dim=-1, keepdim=True) / heads  # (B, T, T)
    patches = mean[:, 0, 1:10]
    return (patches / patches.sum(dim=-1, keepdim=True)).view(-1, 3, 3)


def naive_maps(pair: ReferencePair, images: Tensor) -> minidpt.AttentionMaps:
    """The walk of `reference.prompted_image_feature`, and what is attended to in its last layer."""
    clip, learned = clip_state_in_double(pair.sizes), to_double(pair.learned)
    layers = pair.sizes.vision_layers
    names = [f"visual.transformer.resblocks.{i}" for i in range(layers)]
    embedded = reference.embed_image(clip, images.double())
    x = embedded
    for name in names[:-1]:
        x = reference.block(clip, name, x)
    zero_shot = naive_class_token_map(clip, names[-1], x)

    top_classes = selected = class_aware = None
    generators = 0
    if pair.config["method"] == "dpt":
        generators = len(learned[f"{reference.GENERATOR}.ctx"])
        w0 = reference.zero_shot_classifier(clip, pair.classnames, pair.template, minidpt.tokenize)
        f0 = reference.normalize(reference.encode_image(clip, images.double()))
        order = (f0 @ w0.t()).argsort(dim=-1, descending=True)
        top_classes = order[:, : pair.config["top_k"]]
        g = reference.learned_text_features(
            clip, learned[reference.CONTEXT], pair.classnames, "end", minidpt.tokenize
        )
        selected = g[top_classes]
    visual, x = learned.get(reference.VISUAL, ()), embedded
    for layer, name in enumerate(names):
        index, tokens = layer - (layers - generators), x
        if index >= 0:
            v, _ = reference.class_aware_prompts(learned, index, x, selected)
            class_aware, tokens = naive_class_aware_map(learned, index, x, selected), [x, v]
        elif layer < len(visual):
            tokens = [x, visual[layer].expand(len(x), -1, -1)]
        tokens = x if tokens is x else torch.cat(tokens, dim=1)
        tuned = naive_class_token_map(clip, name, tokens)
        x = reference.block(clip, name, tokens)[:, : x.shape[1]]
    return minidpt.AttentionMaps(zero_shot, tuned, top_classes, class_aware)


def naive_class_aware_map(learned, index: int, x: Tensor, selected: Tensor) -> Tensor:
    """Each image's classes ask its tokens and the learned ones, one by one."""

    def tensor(name: str) -> Tensor:
        return learned[f"{reference.GENERATOR}.{name}"]

    maps = torch.zeros(*selected.shape[:2], 9, dtype=torch.float64)
    for b, features in enumerate(selected):
        tokens = torch.cat([x[b], tensor("ctx")[index]])
        for k, feature in enumerate(features):
            q = tensor(f"meta_nets.{index}.weight") @ feature + tensor(f"meta_nets.{index}.bias")
            q = tensor(f"attns.{index}.qmlp.weight") @ q
            scores = [q @ (tensor(f"attns.{index}.kmlp.weight") @ token) for token in tokens]
            weights = (torch.stack(scores) / math.sqrt(32)).exp()
            weights = weights / weights.sum()
            maps[b, k] = weights[1:10] / weights[1:10].sum()
    return maps.unflatten(-1, (3, 3))


@pytest.mark.parametrize(
    "config",
    [*SMALL_CONFIGS.values(),
     {**SMALL_CONFIGS["dpt"], "class_aware_from": None, "n_visual": 0},
     {**SMALL_CONFIGS["dpt"], "class_aware_from": 1, "top_k": 50},
     {**SMALL_CONFIGS["vpt"], "visual_layers": 1}],
    ids=lambda config: "-".join(str(value) for value in config.values()),
)  # fmt: skip
def test_maps_are_those_of_every_head_and_token_written_out(config):
    pair = ReferencePair(config)
    images = pair.images()
    maps, naive = minidpt.attention_maps(pair.model, images), naive_maps(pair, images)
    for ours, theirs in zip(maps, naive, strict=True):
        if theirs is None:
            assert ours is None
        elif theirs.is_floating_point():
            assert ours.dtype == torch.float32 and not ours.requires_grad
            torch.testing.assert_close(ours.double(), theirs, **PRECISE)
        else:
            assert torch.equal(ours, theirs)


@every_method
def test_every_map_sums_to_one_and_only_visual_prompts_change_it(method):
    pair = ReferencePair(SMALL_CONFIGS[method])
    maps = minidpt.attention_maps(pair.model, pair.images(5))
    assert maps.zero_shot.shape == maps.tuned.shape == (5, 3, 3)
    for values in (maps.zero_shot, maps.tuned, maps.class_aware):
        if values is not None:
            torch.testing.assert_close(values.sum(dim=(-2, -1)), torch.ones(values.shape[:-2]))
    assert torch.equal(maps.zero_shot, maps.tuned) == (method in ("zeroshot", "coop"))
    assert (maps.class_aware is None) == (maps.top_classes is None) == (method != "dpt")


def test_classes_come_best_first_also_where_all_are_selected():
    """There the model itself selects them in their order, without the frozen feature."""
    pair = ReferencePair({**SMALL_CONFIGS["dpt"], "top_k": len(UNEQUAL_NAMES)})
    images = pair.images()
    with torch.no_grad():
        unsorted = pair.model(images, branches=False).top_classes
        zero_shot = pair.model.for_classes(UNEQUAL_NAMES).clip.encode_image(images)
    cosines = torch.nn.functional.normalize(zero_shot, dim=-1) @ pair.model.template_features.t()
    maps = minidpt.attention_maps(pair.model, images)
    assert torch.equal(maps.top_classes, cosines.argsort(dim=-1, descending=True))
    assert not torch.equal(maps.top_classes, unsorted)
    assert maps.class_aware.shape == (4, len(UNEQUAL_NAMES), 3, 3)


def test_maps_of_a_clip_in_lower_precision_are_near_those_in_fp32():
    pair = ReferencePair(SMALL_CONFIGS["vlp"])
    clip = minidpt.build_clip(pair.clip.state_dict()).cast(torch.bfloat16)
    model = minidpt.build_model(clip, UNEQUAL_NAMES, pair.template, pair.model.config)
    model.load_published(pair.learned)
    exact = minidpt.attention_maps(pair.model, pair.images())
    rounded = minidpt.attention_maps(model, pair.images())
    for ours, theirs in ((rounded.zero_shot, exact.zero_shot), (rounded.tuned, exact.tuned)):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)  # 8 bits through 3 layers
