"""The parts of the training loop: epochs, schedule, parameter groups, and that they train."""

from __future__ import annotations

import pytest
import torch
from helpers import reference
from helpers.reference_pair import SMALL_CONFIGS, ReferencePair
from helpers.tiny_models import WIDE, clip_state, random_images

import minidpt
from minidpt import training


@pytest.mark.parametrize(
    ("method", "by_shots"),
    [
        ("zeroshot", {1: 0, 16: 0}),
        ("coop", {1: 50, 2: 100, 4: 100, 5: 200, 16: 200}),
        ("vpt", {1: 60, 2: 100, 4: 100, 8: 100, 16: 100}),
        ("vlp", {1: 60, 2: 100, 4: 100, 8: 100, 16: 100}),
        ("dpt", {1: 60, 2: 100, 4: 100, 8: 100, 16: 100}),
    ],
)
def test_default_epochs_are_the_published_ones(method, by_shots):
    assert {shots: training.default_epochs(method, shots) for shots in by_shots} == by_shots
    on_imagenet = {shots: 50 for shots in by_shots} if method == "coop" else by_shots
    assert on_imagenet == {n: training.default_epochs(method, n, "ImageNet") for n in by_shots}


def test_a_loss_or_a_prompt_that_is_not_finite_is_an_error():
    clip = minidpt.build_clip(clip_state(WIDE))
    model = minidpt.build_model(clip, ["ox", "owl"], "a {}.", minidpt.PromptConfig("vlp", n_ctx=3))
    training.check_finite(3e38, model, 2, "model.pt")
    with pytest.raises(ValueError, match="epoch 2: the loss is nan; model.pt is of the epoch"):
        training.check_finite(float("nan"), model, 2, "model.pt")
    for wrong in (float("nan"), float("inf"), -float("inf")):
        model.text_prompts.ctx.data[1, 2] = wrong
        with pytest.raises(ValueError, match="is 1.0, the prompts after it are not finite"):
            training.check_finite(1.0, model, 2, "model.pt")


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_no_row_is_taken_twice_by_indexing(position):
    """The gradient of `x[rows]` would be summed by threads that race, and a seed would not repeat.

    Looked for in the graph: in a model this small, threads that race seldom meet.
    """
    clip = minidpt.build_clip(clip_state(WIDE))
    config = minidpt.PromptConfig(
        n_ctx=3, n_visual=2, top_k=3, class_aware_from=2, class_token_position=position
    )
    model = minidpt.build_model(clip, ["ox", "owl", "gnu", "red fox"], "a {}.", config).train()
    loss = model.loss(model(random_images(WIDE, 8)), torch.arange(8) % 4)
    nodes, seen, taken = [loss.grad_fn], set(), 0
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(parent for parent, _ in node.next_functions)
            saved = getattr(node, "_saved_indices", ())
            if isinstance(saved, torch.Tensor):
                continue  # of F.embedding, which sums rows taken twice in their order
            for rows in saved:
                if rows is not None:
                    taken += 1
                    assert len(rows.unique()) == rows.numel(), (node.name(), rows)
    assert taken, "expected the rows of the prompts' ends among what is taken"


@pytest.mark.parametrize("method", ["coop", "dpt"])
def test_chunks_of_classes_save_memory(method):
    """What the forward pass keeps for the backward pass, all tensors together."""
    clip = minidpt.build_clip(clip_state(WIDE))
    names = [f"ox {n}" for n in range(100)]
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=3)
    model = minidpt.build_model(clip, names, "a {}.", config).train()
    images = random_images(WIDE, 2)

    def saved_bytes(chunk: int | None) -> int:
        model.class_chunk, storages = chunk, {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(images)
        del output
        return sum(storages.values())

    weights = sum(p.untyped_storage().nbytes() for p in clip.parameters())
    everything, chunked = saved_bytes(None) - weights, saved_bytes(10) - weights
    assert chunked < everything / 2, (chunked, everything)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (SMALL_CONFIGS["zeroshot"], []),
        (SMALL_CONFIGS["coop"], [0.002]),
        (SMALL_CONFIGS["vpt"], [0.01]),
        (SMALL_CONFIGS["vlp"], [0.01, 0.002]),
        (SMALL_CONFIGS["dpt"], [0.01, 0.002]),
        ({**SMALL_CONFIGS["vpt"], "n_visual": 0}, []),
        ({**SMALL_CONFIGS["vlp"], "n_visual": 0}, [0.002]),
        ({**SMALL_CONFIGS["dpt"], "class_aware_from": 1}, [0.01, 0.002]),
    ],
)
def test_parameter_groups_are_the_sides_that_learn_image_side_first(config, rates):
    pair = ReferencePair(config)
    groups = minidpt.parameter_groups(pair.model)  # by default the published rates
    sides = {0.01: "visual", 0.002: "text"}
    assert [(group["lr"], group["name"]) for group in groups] == [
        *zip(rates, map(sides.get, rates))
    ]
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
