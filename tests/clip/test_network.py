"""The image and text encoder against the naive ones, and what may be done to a CLIP."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import torch
from helpers import reference
from helpers.golden_cases import assert_close
from helpers.tiny_models import DEEP, WIDE, Sizes, clip_state, random_images, to_double
from torch import Tensor
from torch.nn import functional as F

import minidpt
from minidpt.clip.network import MLP, LayerNorm, ResidualAttentionBlock
from minidpt.clip.packing import pack
from minidpt.clip.state_dict import infer_sizes
from minidpt.support.progress import use_progress

TEXTS = ["an ox", "a photo of a red fox.", "", "a quite rare species of deep-sea anglerfish"]
BLOCK = "visual.transformer.resblocks.1"

both_sizes = pytest.mark.parametrize("sizes", [WIDE, DEEP], ids=["wide", "deep"])


def build(sizes: Sizes = WIDE, **options) -> minidpt.CLIP:
    return minidpt.build_clip(clip_state(sizes), **options)


# The network


@both_sizes
def test_features_agree_with_the_naive_encoders(sizes):
    clip, state = build(sizes), to_double(clip_state(sizes))
    images, tokens = random_images(sizes, 5), minidpt.tokenize(TEXTS)
    expected_image = reference.encode_image(state, images.double())
    expected_text = reference.encode_text(state, tokens)
    assert_close(clip.encode_image(images), expected_image, "image features")
    assert_close(clip.encode_text(tokens), expected_text, "text features")

    expected = reference.normalize(expected_image) @ reference.normalize(expected_text).t() / 0.07
    per_image, per_text = clip(images, tokens)
    assert_close(per_image, expected, "logits per image")
    assert_close(per_text, expected.t(), "logits per text")


def block_of(clip: minidpt.CLIP) -> ResidualAttentionBlock:
    return clip.visual.transformer.resblocks[1]


def random_tokens(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(shape[-2])
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shape", [(2, 128), (3, 2, 128), (1, 128), (0, 128)])
@pytest.mark.parametrize("only_cls", [False, True])
def test_prompts_as_keys_and_values_are_tokens_whose_outputs_are_dropped(shape, only_cls):
    x, prompts = random_tokens(3, 7, 128), random_tokens(*shape)
    ours = [value.clone().requires_grad_() for value in (x, prompts)]
    block = block_of(build())
    keys = block.project_prompts(ours[1])
    result = block.forward_cls(*ours) if only_cls else block(ours[0], keys)

    theirs = [value.double().requires_grad_() for value in (x, prompts)]
    every = torch.cat([theirs[0], theirs[1].expand(3, -1, -1)], dim=1)  # (3, 7 + P, 128)
    expected = reference.block(to_double(clip_state(WIDE)), BLOCK, every)
    expected = expected[:, 0] if only_cls else expected[:, :7]
    assert_close(result, expected, "tokens")

    weights = random_tokens(*result.shape)
    gradients = torch.autograd.grad((result * weights).sum(), ours)
    expected_gradients = torch.autograd.grad((expected * weights.double()).sum(), theirs)
    for gradient, value in zip(gradients, expected_gradients, strict=True):
        assert (gradient - value).norm() <= 1e-5 * value.norm()  # roundings of some 1000 terms


def test_without_prompts_the_class_token_is_the_first_one_of_all():
    block, x = block_of(build()), random_tokens(3, 7, 128)
    assert_close(block.forward_cls(x), block(x)[:, 0])


@pytest.mark.parametrize("quick", [True, False])
def test_an_mlp_is_two_products_and_the_gelu_in_value_and_gradient(quick):
    torch.manual_seed(0)
    mlp = MLP(64, 256, quick)
    weights = {name: value.detach().double() for name, value in mlp.named_parameters()}
    x = random_tokens(3, 5, 64).mul_(4).requires_grad_()
    exact = x.detach().double().requires_grad_()
    inner = exact @ weights["c_fc.weight"].t() + weights["c_fc.bias"]
    inner = inner * torch.sigmoid(1.702 * inner) if quick else F.gelu(inner)
    residual = random_tokens(3, 5, 64)
    expected = residual + inner @ weights["c_proj.weight"].t() + weights["c_proj.bias"]
    value = mlp(x, residual)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=1e-6)
    direction = random_tokens(3, 5, 64)
    value.backward(direction)
    expected.backward(direction.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2e-6, atol=1e-6)


def test_exact_gelu_is_a_choice_and_makes_a_difference(monkeypatch):
    images, tokens = random_images(WIDE, 3), minidpt.tokenize(TEXTS)
    exact = build(quick_gelu=False)
    assert (build().encode_image(images) - exact.encode_image(images)).abs().max() > 1e-3
    monkeypatch.setattr(reference, "quick_gelu", F.gelu)
    state = to_double(clip_state(WIDE))
    assert_close(exact.encode_image(images), reference.encode_image(state, images.double()))
    assert_close(exact.encode_text(tokens), reference.encode_text(state, tokens))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(shape) for shape in [(2, 3, 22, 22), (2, 3, 21, 14), (3, 21, 21), (2, 21, 21, 3)]]
    + [torch.zeros(2, 3, 21, 21, dtype=torch.uint8)],
)
def test_images_of_another_size_or_kind_are_refused(images):
    message = f"expected floating-point images (B, 3, 21, 21), got {images.dtype} "
    with pytest.raises(ValueError, match=re.escape(message + str(tuple(images.shape)))):
        build().encode_image(images)


# Building


@both_sizes
def test_sizes_are_read_off_the_tensors(sizes):
    clip = build(sizes)
    assert clip.visual.resolution == sizes.patch * sizes.grid
    assert len(clip.visual.transformer.resblocks) == sizes.vision_layers
    assert len(clip.transformer.resblocks) == sizes.text_layers
    assert clip.visual.transformer.resblocks[0].attn.heads == sizes.vision_width // 64
    assert clip.transformer.resblocks[0].attn.heads == sizes.text_width // 64
    assert clip.encode_image(random_images(sizes, 2)).shape == (2, sizes.embedding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_clip_has_frozen_fp32_copies_of_its_tensors(dtype):
    tensors = {name: value.to(dtype, copy=True) for name, value in clip_state(WIDE).items()}
    clip = minidpt.build_clip(tensors)
    assert clip.state_dict().keys() == tensors.keys()
    for value in tensors.values():
        value.add_(1)
    for name, value in clip.state_dict().items():
        assert torch.equal(value, clip_state(WIDE)[name].to(dtype).float()), name
    assert not any(value.requires_grad for value in clip.parameters())
    assert not clip.training
    assert not clip.encode_image(random_images(WIDE, 1)).requires_grad


PROJ, C_FC, LN = "visual.proj", f"{BLOCK}.mlp.c_fc.weight", "ln_final.bias"


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({C_FC: None, LN: None}, [f"missing {LN}, {C_FC}"]),
        ({PROJ: torch.zeros(128, 36)}, [r"visual.proj is \(128, 36\), expected \(128, 37\)"]),
        ({C_FC: torch.zeros(511, 128)}, [rf"{C_FC} is \(511, 128\), expected \(512, 128\)"]),
        ({LN: None, "head.weight": torch.zeros(2), PROJ: torch.zeros(37, 128)},
         [f"missing {LN}", "unknown head.weight", r"visual.proj is \(37, 128\)"]),
        ({"visual.positional_embedding": torch.zeros(12, 128)}, [r"is \(12, 128\), expected"]),
        ({"visual.conv1.weight": None}, ["visual.conv1.weight: .* got None"]),
        ({"text_projection": None}, ["text_projection: .* got None"]),
        ({"visual.layer1.0.conv1.weight": torch.zeros(2)}, ["ResNet", "only ViT"]),
        ({"visual.conv1.weight": torch.zeros(128)}, ["visual.conv1.weight"]),
        ({"token_embedding.weight": torch.zeros(7, 7, 7)}, ["token_embedding.weight"]),
        ({PROJ: torch.zeros(128, 37).fill_(torch.nan)}, [f"{PROJ} is not finite"]),
        ({LN: torch.full((64,), -torch.inf)}, [f"{LN} is not finite"]),
        ({LN: torch.full((64,), 1e300, dtype=torch.float64)}, [f"{LN} is not finite"]),
        ({PROJ: torch.zeros(128, 37, dtype=torch.int64)}, [f"{PROJ} is torch.int64, expected a t"]),
        ({PROJ: torch.zeros(128, 37, dtype=torch.bool)}, [f"{PROJ} is torch.bool, expected a t"]),
        ({PROJ: torch.zeros(128, 37) + 0j}, [f"{PROJ} is torch.complex64, expected a t"]),
        ({"logit_scale": torch.tensor(89.0)}, ["logit_scale: expected less than 88, got 89"]),
        ({PROJ: 5, LN: None}, [f"missing {LN}", f"{PROJ} is 5, expected a tensor"]),
        ({"visual.conv1.weight": "x"}, ["visual.conv1.weight: .* got 'x'"]),
        ({5: torch.zeros(2)}, ["expected named entries"]),
        ({"visual.conv1.weight": torch.zeros(128, 3, 0, 0)}, ["4 dimensions, got shape"]),
        ({"visual.conv1.weight": torch.zeros(2**46, 3, 0, 7)}, ["4 dimensions, got shape"]),
        ({"visual.positional_embedding": torch.zeros(1, 128)}, ["got 0 × 0 patches of 7 pixels"]),
        ({"visual.positional_embedding": torch.zeros(10**6, 1)}, ["of 1 to 4096 .* 999 × 999"]),
        ({f"transformer.resblocks.{i}.x": torch.zeros(1) for i in range(999)},
         ["1 to 256 blocks .*, got 999"]),
    ],
)  # fmt: skip
def test_tensors_that_are_no_clip_are_refused_and_named(changes, messages):
    changed = clip_state(WIDE) | changes
    tensors = {name: value for name, value in changed.items() if value is not None}
    with pytest.raises(ValueError) as error:
        minidpt.build_clip(tensors)
    for message in messages:
        assert re.search(message, str(error.value)), error.value


def test_a_long_list_of_wrong_names_is_cut_and_counted():
    tensors = {name: value for name, value in clip_state(WIDE).items() if not name.endswith("bias")}
    missing = len(clip_state(WIDE)) - len(tensors)
    with pytest.raises(ValueError, match=f"and {missing - 5} more") as error:
        minidpt.build_clip(tensors)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("width", [1024, 1280, 1408, 1664])
def test_an_image_encoder_wider_than_vit_l_needs_its_head_width(width):
    """ViT-H/14, g/14 and bigG/14 have heads of 80, 88, 104; no shape tells which. Text: 64."""
    wide = torch.zeros(1).expand(49408, width)
    sizes = infer_sizes(clip_state(WIDE) | {"token_embedding.weight": wide})["text"]
    assert (sizes.width, sizes.heads) == (width, width // 64)
    conv1 = torch.zeros(1).expand(width, 3, 7, 7)
    tensors = clip_state(WIDE) | {"visual.conv1.weight": conv1}
    if width == 1024:
        assert infer_sizes(tensors)["vision"].heads == 16
    else:
        with pytest.raises(ValueError, match=f"width {width}: pass --head-width 80 .ViT-H"):
            minidpt.build_clip(tensors)
        assert infer_sizes(tensors, head_width=width // 16)["vision"].heads == 16


@pytest.mark.parametrize("width", [0, -64, 48, 256])
def test_heads_that_do_not_fill_the_width_are_refused(width):
    with pytest.raises(ValueError, match=f"^head_width: .* a divisor of 128, got {width}$"):
        minidpt.build_clip(clip_state(WIDE), head_width=width)
    with pytest.raises(ValueError, match=f"^text_head_width: .* a divisor of 64, got {width}$"):
        minidpt.build_clip(clip_state(WIDE), text_head_width=width)


def test_other_head_and_mlp_widths_compute_as_the_naive_encoders(monkeypatch):
    """As ViT-bigG/14 has: 104 wide, and MLPs that are no four times as wide as the layer."""
    state = dict(clip_state(WIDE))
    for name in [name for name in state if name.startswith("visual") and ".mlp.c_" in name]:
        axis = 0 if ".c_fc." in name else 1
        if not name.endswith("c_proj.bias"):
            state[name] = state[name].narrow(axis, 0, 317)
    images, tokens = random_images(WIDE, 2), minidpt.tokenize(TEXTS)
    clip = minidpt.build_clip(state, head_width=32, text_head_width=16)
    assert clip.visual.transformer.resblocks[0].mlp.c_fc.out_features == 317
    monkeypatch.setattr(reference, "HEAD_WIDTH", 32)
    expected = reference.encode_image(to_double(state), images.double())
    assert_close(clip.encode_image(images), expected)
    monkeypatch.setattr(reference, "HEAD_WIDTH", 16)
    assert_close(clip.encode_text(tokens), reference.encode_text(to_double(state), tokens))
    assert clip.fingerprint() != minidpt.build_clip(state).fingerprint()


# The size of images


def test_positional_embeddings_are_interpolated_for_images_of_another_size():
    """A plane stays one: values linear in row and column, beside an untouched class token."""
    row, column = torch.arange(49.0) // 7, torch.arange(49.0) % 7
    stored = torch.cat([torch.full((1,), 99.0), row + 10 * column])
    state = clip_state(WIDE) | {"visual.positional_embedding": stored.repeat(128, 1).t()}
    clip = minidpt.build_clip(state).resize_positional_embedding(15 * 7)
    assert (clip.visual.resolution, clip.image_size) == (105, 105)
    got = clip.visual.positional_embedding
    assert got[0].eq(99).all() and not got.requires_grad
    inner = slice(5, 10)  # near the border the filter leaves the stored grid
    middle = ((torch.arange(15) + 0.5) * 7 / 15 - 0.5)[inner]  # of new patches among the old
    grid = got[1:].unflatten(0, (15, 15))[inner, inner, 5]
    assert (grid - (middle[:, None] + 10 * middle)).abs().max() < 1e-4
    assert clip.encode_image(torch.randn(2, 3, 105, 105)).shape == (2, 37)
    assert clip.fingerprint() == minidpt.build_clip(state).fingerprint()


def test_the_stored_size_changes_nothing_and_another_must_be_of_whole_patches():
    clip = build()
    before = clip.visual.positional_embedding
    assert clip.resize_positional_embedding(21).visual.positional_embedding is before
    assert clip.image_size is None
    for size in (22, 7 * 2000):
        with pytest.raises(ValueError, match=rf"expected a multiple of 7 .*up to 4096, got {size}"):
            clip.resize_positional_embedding(size)
    clip.resize_positional_embedding(14)
    with pytest.raises(ValueError, match="expected a CLIP as stored"):
        clip.resize_positional_embedding(21)


def test_a_clip_has_its_own_colours_and_they_are_in_its_fingerprint():
    clip, pixels = build(), torch.arange(27, dtype=torch.uint8).view(1, 3, 3, 3) * 9
    usual = clip.normalize(pixels)
    clip.mean, clip.std = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
    shift, scale = torch.tensor([clip.mean, clip.std]).view(2, 1, 3, 1, 1)
    assert torch.equal(clip.normalize(pixels), (pixels / torch.tensor(255.0) - shift) / scale)
    assert not torch.equal(clip.normalize(pixels), usual)
    fingerprints = {build().fingerprint(), clip.fingerprint()}
    for name in ("mean", "std"):
        other = build()
        setattr(other, name, getattr(clip, name))
        fingerprints.add(other.fingerprint())
    assert len(fingerprints) == 4


# Precision


@pytest.mark.parametrize(
    ("dtype", "closeness"),
    [(torch.bfloat16, 0.03), (torch.float16, 0.004)],  # about 8 roundings of 2⁻⁹, 2⁻¹²
)
@pytest.mark.parametrize("convert", [minidpt.CLIP.cast, minidpt.CLIP.to])  # `to`: norms, too
def test_a_cast_clip_computes_nearly_the_same(convert, dtype, closeness):
    exact, clip = build(), build()
    assert convert(clip, dtype) is clip and clip.dtype == dtype
    images, tokens = random_images(WIDE, 5), minidpt.tokenize(TEXTS)
    for encode, inputs in (("encode_image", images), ("encode_text", tokens)):
        features, expected = (getattr(model, encode)(inputs) for model in (clip, exact))
        assert features.dtype == torch.float32
        difference = (features - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert 0 < difference.max() <= closeness, encode
    logits, _ = clip(images, tokens)
    if convert is minidpt.CLIP.cast:
        assert logits.dtype == torch.float32  # the scale and cosines are not rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_leaves_norms_projections_and_temperature_in_fp32(dtype):
    clip, state = build().cast(dtype), clip_state(WIDE)
    in_fp32 = {name for name, value in clip.state_dict().items() if value.dtype == torch.float32}
    assert in_fp32 == {
        name for name in state if re.search(r"\bln_|^logit_scale$|\bproj$|^text_projection$", name)
    }
    for name, value in clip.state_dict().items():
        assert value.dtype == (torch.float32 if name in in_fp32 else dtype), name
        assert torch.equal(value, state[name].to(value.dtype)), name
        assert not value.requires_grad


def test_a_norm_computes_in_fp32_and_returns_the_precision_it_was_given():
    x = (1000 + torch.arange(7.0)).to(torch.bfloat16)[None]  # spacing of bf16 there: 4
    norm = LayerNorm(7)
    assert norm(x).dtype == torch.bfloat16
    expected = F.layer_norm(x.float(), (7,)).to(torch.bfloat16)
    assert torch.equal(norm(x), expected)
    squares = torch.full((1, 7), 3000.0, dtype=torch.float16)  # 3000² is beyond fp16
    squares[0, 0] = -3000
    assert torch.isfinite(norm(squares)).all()


# Fingerprint


def test_a_fingerprint_is_that_of_the_weights_in_any_precision():
    rounded = {name: value.half() for name, value in clip_state(WIDE).items()}
    fingerprint = minidpt.build_clip(rounded).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    assert build().fingerprint() == fingerprint  # fp32 weights, of which these are the rounding
    widened = {name: value.double() for name, value in rounded.items()}
    assert minidpt.build_clip(widened).fingerprint() == fingerprint
    for dtype in (torch.bfloat16, torch.float16):
        assert build().cast(dtype).fingerprint() == fingerprint
    clip = build()
    clip.fingerprint()
    assert clip.cast(torch.bfloat16).fingerprint() == fingerprint
    assert clip.to("cpu").fingerprint() == fingerprint
    assert build().bfloat16().fingerprint() == fingerprint


@pytest.mark.parametrize("name", ["logit_scale", "ln_final.bias", "token_embedding.weight"])
def test_a_fingerprint_changes_with_any_value_and_with_the_activation(name):
    changed = clip_state(WIDE)[name].clone()
    changed.view(-1)[-1] += 0.01
    clip = minidpt.build_clip(clip_state(WIDE) | {name: changed})
    different = {each.fingerprint() for each in (clip, build(), build(quick_gelu=False))}
    assert len(different) == 3  # no tensor tells activations apart


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_mlp_in_bf16_rounds_a_large_residual_once(quick_gelu):
    """Numbers of 64 to 128 are 1/2 apart: rounded once they are 1/8 off on average, twice 1/6."""
    generator = torch.Generator().manual_seed(0)
    mlp = MLP(64, 256, quick_gelu).requires_grad_(False)
    for parameter in mlp.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    mlp.c_proj.bias.copy_(torch.randn(64, generator=generator))
    mlp.bfloat16()
    x = torch.randn(99, 64, generator=generator).bfloat16()
    residual = (80 + 32 * torch.rand(99, 64, generator=generator)).bfloat16()
    rounded = mlp(x, residual)
    expected = mlp.double()(x.double(), residual.double())
    assert (rounded.double() - expected).abs().mean() < 0.14


@pytest.mark.parametrize(("chunk", "parts"), [(None, 1), (3, 3)])
def test_the_text_encoder_reports_its_progress_except_in_a_training_step(chunk, parts):
    clip, reports = minidpt.build_clip(clip_state(WIDE)), []

    @contextmanager
    def watch(*job):
        reports.append(job)
        yield reports.append

    layout = pack([[49406, *range(1000 * n, 1000 * n + 30), 49407] for n in range(1, 8)])
    with use_progress(watch):
        with torch.no_grad():
            expected = clip.encode_packed(clip.embed_packed(layout), layout, chunk)
        assert reports == [("layers of the text encoder", 2), 1, 2] * parts
        features = clip.encode_packed(clip.embed_packed(layout), layout, chunk)
        assert len(reports) == 3 * parts and torch.equal(features, expected)
