"""What a step asks of a GPU: nothing of the host, and of torch's attention its fused kernels.

Where there is no GPU, the tests that need one are skipped; `meta` tensors, which have no values,
stand in for the others: whatever the host would have to wait for cannot be computed on them.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.tiny_models import Sizes, clip_state, random_images
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minidpt
from minidpt.clip.attention import attention
from minidpt.runs.config import PRECISIONS
from minidpt.runs.devices import move_clip

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
needs_meta_checkpoint = pytest.mark.skipif(
    torch.__version__ < "2.5", reason="checkpoint() of this torch knows no meta device"
)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
METHODS, LEARNING_TEXT = ["coop", "vpt", "vlp", "dpt"], ["coop", "vlp", "dpt"]
every_method = pytest.mark.parametrize("method", METHODS)

# Heads as wide as OpenAI's, 64: fused kernels ask for multiples of 8.
CLIP = Sizes(
    embedding=64, vision_width=128, vision_layers=2, text_width=128, text_layers=2, patch=8, grid=4
)
NAMES = ["ox", "red fox", "great northern diver"]
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def build(method: str, precision: str, device: str) -> minidpt.PromptedCLIP:
    torch.manual_seed(0)
    clip = move_clip(minidpt.build_clip(clip_state(CLIP)), torch.device(device), precision)
    config = minidpt.PromptConfig(method=method, n_ctx=4, n_visual=3, top_k=2)
    return minidpt.build_model(clip, NAMES, "a photo of a {}.", config).train()


def step(model: minidpt.PromptedCLIP, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    loss = model.loss(model(images), labels, guidance=True)
    loss.backward()
    return loss.detach()


class OnDevice(TorchDispatchMode):
    """Refuses operations on tensors of the host, and the copies from and to it."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves((arguments, keywords, result)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "meta", f"{function} on the host"
        return result


@pytest.mark.parametrize("precision", ["fp32", "fp16"])  # on `meta`, bf16 is but another name
@pytest.mark.parametrize(
    ("method", "class_chunk"),
    [
        *[(method, None) for method in METHODS],
        *[pytest.param(method, 2, marks=needs_meta_checkpoint) for method in LEARNING_TEXT],
    ],
)
def test_a_step_takes_nothing_from_the_host(method, precision, class_chunk, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    model = build(method, precision, "cpu").to("meta")
    model.class_chunk = class_chunk
    images, labels = torch.empty(2, 3, 32, 32, device="meta"), torch.zeros(2, device="meta").long()
    with OnDevice():
        step(model, images, labels)


@pytest.mark.parametrize("rows", [lambda: torch.arange(2), lambda: torch.tensor([0, 1])])
def test_that_test_would_see_an_index_of_the_host(rows):
    with pytest.raises(AssertionError, match="on the host"), OnDevice():
        torch.zeros(3, device="meta")[rows()]


def test_attention_takes_a_fused_kernel():
    """Of the processor, which has but one; CUDA's want four dimensions, which that takes, too."""
    q, k, v = torch.randn(3, 2, 1, 7, 16)
    noted = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            noted.append(str(function))
            return function(*arguments, **(keywords or {}))

    with Note():
        attention(q, k, v)
    assert any("flash_attention" in name for name in noted), noted


@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@every_precision
@every_method
def test_a_step_takes_fused_kernels_and_does_not_wait(method, precision):
    """With the optimizer and the scaler of train.py."""
    model = build(method, precision, "cuda")
    images, labels = random_images(CLIP, 5).cuda(), (torch.arange(5) % 3).cuda()
    optimizer = torch.optim.SGD(minidpt.parameter_groups(model), momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")

    def update():
        loss = model.loss(model(images), labels, guidance=True)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    with sdpa_kernel(FUSED):  # an error, where none of them can be taken
        update()
        try:
            torch.cuda.set_sync_debug_mode("error")
            update()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@every_method
def test_a_step_on_cuda_computes_what_the_processor_does(method, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the patch embedding's
    results = []
    for device in ("cpu", "cuda"):
        model = build(method, "fp32", device)
        loss = step(model, random_images(CLIP, 5).to(device), (torch.arange(5) % 3).to(device))
        results.append(
            (loss.cpu(), {n: p.grad.cpu() for n, p in model.prompt_state_dict().items()})
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
