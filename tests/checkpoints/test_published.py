"""Prompts saved by the published code: folders as its training loop (Dassl's) leaves them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import reference
from helpers.golden_cases import assert_close
from helpers.tiny_models import WIDE, clip_state, learned_shapes, learned_tensors, random_images
from torch import Tensor, nn

import minidpt
from minidpt.checkpoints.prompt_file import CLASS_AWARE, TEXT, VISUAL, infer_config

NAMES = ["ox", "red fox", "gnu"]
TEMPLATE = "a photo of a {}."
CONFIGS = {
    "coop": {"method": "coop", "n_ctx": 3},
    "vpt": {"method": "vpt", "n_visual": 2},
    "vlp": {"method": "vlp", "n_ctx": 3, "n_visual": 2},
    "dpt": {"method": "dpt", "n_ctx": 3, "n_visual": 2, "top_k": 2, "class_aware_from": 2},
    "csc": {"method": "coop", "n_ctx": 3, "csc": True},
}
every_config = pytest.mark.parametrize("kind", CONFIGS)


class WarmUp(torch.optim.lr_scheduler.LRScheduler):
    """As Dassl's: its state holds the scheduler that comes after it, an object of torch.optim."""

    def __init__(self, optimizer, successor):
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [1e-5 for _ in self.base_lrs]


def learned_of(kind: str, seed: int = 1) -> dict[str, Tensor]:
    return learned_tensors(learned_shapes(WIDE, len(NAMES), CONFIGS[kind]), seed)


def save_published(
    folder: Path, tensors: dict[str, Tensor], epoch: int, dtype: torch.dtype = torch.float16
) -> Path:
    """A folder for each part with `model.pth.tar-N`, after a step of training."""
    for module in ("prompt_learner", "image_encoder.transformer.ctx_learner",
                   "image_encoder.transformer.extractor"):  # fmt: skip
        state = {name.removeprefix(module + "."): value.to(dtype) for name, value in tensors.items()
                 if name.startswith(module + ".")}  # fmt: skip
        if not state:
            continue
        parameters = [nn.Parameter(value.clone()) for value in state.values()]
        optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)
        scheduler = WarmUp(optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50.0))
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        if module == "prompt_learner":
            state["token_prefix"] = torch.ones(len(NAMES), 1, 64, dtype=dtype)
            state["token_suffix"] = torch.ones(len(NAMES), 73, 64, dtype=dtype)
        (folder / module).mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "state_dict": state,
            "epoch": epoch,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "val_result": 91.2,
        }
        assert type(checkpoint["scheduler"]["successor"]).__module__ == "torch.optim.lr_scheduler"
        torch.save(checkpoint, folder / module / f"model.pth.tar-{epoch}")
        (folder / module / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    (folder / "log.txt").write_text("epoch 1\n")
    return folder


def new_model(kind: str) -> minidpt.PromptedCLIP:
    clip = minidpt.build_clip(clip_state(WIDE))
    return minidpt.build_model(clip, NAMES, TEMPLATE, minidpt.PromptConfig(**CONFIGS[kind])).eval()


@every_config
def test_a_published_run_is_read_into_a_model_and_computes_as_published(kind, tmp_path):
    learned = {name: value.half() for name, value in learned_of(kind).items()}
    tensors = minidpt.read_published(save_published(tmp_path, learned, epoch=50))
    model = new_model(kind)
    model.load_published(tensors)
    for name, value in model.published().items():
        assert torch.equal(value, learned[name].float()), name
        assert value.dtype == torch.float32, name
    expected = reference.forward(
        clip_state(WIDE), {name: value.float() for name, value in learned.items()},
        images := random_images(WIDE, 3), NAMES, TEMPLATE, minidpt.tokenize,
        method=CONFIGS[kind]["method"], top_k=CONFIGS[kind].get("top_k", 10),
    )  # fmt: skip
    assert_close(model(images).logits, expected.logits, "logits")


def test_the_latest_epoch_is_taken_by_its_number(tmp_path):
    by_epoch = {epoch: learned_of("vlp", seed=epoch) for epoch in (9, 10, 100)}
    for epoch, learned in by_epoch.items():
        save_published(tmp_path, learned, epoch, torch.float32)
    best = tmp_path / "prompt_learner" / "model-best.pth.tar"
    best.write_bytes(b"not looked at")
    tensors = minidpt.read_published(tmp_path)
    for name, value in by_epoch[100].items():
        assert torch.equal(tensors[name], value), name
    tensors = minidpt.read_published(tmp_path, epoch=9)
    assert torch.equal(tensors["prompt_learner.ctx"], by_epoch[9]["prompt_learner.ctx"])
    with pytest.raises(FileNotFoundError, match=r"each with the same model\.pth\.tar-50"):
        minidpt.read_published(tmp_path, epoch=50)


def test_a_folder_without_any_part_is_refused_and_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="prompt_learner/"):
        minidpt.read_published(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="prompt_learner/"):
        minidpt.read_published(tmp_path)
    save_published(tmp_path, learned_of("coop"), 50)
    with pytest.raises(FileNotFoundError, match="prompt_learner/"):  # one level too deep
        minidpt.read_published(tmp_path / "prompt_learner")


def test_parts_that_share_no_epoch_are_refused(tmp_path):
    save_published(tmp_path, learned_of("vlp"), 9)
    save_published(tmp_path, learned_of("vlp"), 50)
    visual = tmp_path / "image_encoder.transformer.ctx_learner"
    (visual / "model.pth.tar-50").unlink()
    assert minidpt.read_published(tmp_path)
    (visual / "model.pth.tar-9").rename(visual / "model.pth.tar-8")
    with pytest.raises(FileNotFoundError, match=r"ctx_learner.* the same model\.pth\.tar-N"):
        minidpt.read_published(tmp_path)


@pytest.mark.parametrize("content", [{"epoch": 50}, {"state_dict": None}, [1, 2], b"text"])
def test_a_file_that_is_no_such_checkpoint_is_refused_and_named(content, tmp_path):
    file = tmp_path / "prompt_learner" / "model.pth.tar-50"
    file.parent.mkdir()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=r"model\.pth\.tar-50"):
        minidpt.read_published(tmp_path)


@pytest.mark.parametrize(
    ("saved", "wanted", "message"),
    [
        ("coop", "dpt", "missing image_encoder"),
        ("dpt", "coop", "unknown image_encoder"),
        ("coop", "csc", r"prompt_learner\.ctx is \(3, 64\), expected \(3, 3, 64\)"),
    ],
)
def test_a_run_of_another_method_is_refused(saved, wanted, message, tmp_path):
    tensors = minidpt.read_published(save_published(tmp_path, learned_of(saved), 50))
    with pytest.raises(ValueError, match=message):
        new_model(wanted).load_published(tensors)


@pytest.mark.parametrize(
    "shapes", [{}, {TEXT: (64,)}, {VISUAL: (2, 64)}, {VISUAL: (2, 2, 64), CLASS_AWARE: (1, 2, 64)}]
)
def test_tensors_of_no_method_are_refused_with_their_shapes(shapes):
    tensors = {f"{name}.ctx": torch.zeros(shape) for name, shape in shapes.items()}
    expected = "".join(f".*{name}.ctx {re.escape(str(shape))}" for name, shape in shapes.items())
    with pytest.raises(ValueError, match=f"expected CoOp's or DPT's, got {expected}"):
        infer_config(tensors, 12)
