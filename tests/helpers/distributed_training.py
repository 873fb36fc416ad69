"""Train tiny models in several processes: what `test_distributed.py` compares.

    python tests/helpers/distributed_training.py FOLDER    # each case by 2 and by 3 processes

The processes are forked after the imports and make up one group for all cases of theirs.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401 (which each process would import for its first optimizer)
from torch import Tensor, distributed  # noqa: E402

import minidpt  # noqa: E402
from helpers import golden_cases  # noqa: E402
from helpers.golden_cases import METHOD_CASES, load_case  # noqa: E402
from helpers.tiny_models import WIDE, random_images, shared_clip  # noqa: E402
from minidpt.support.distributed import NO_LABEL, World  # noqa: E402

SIZES = (2, 3)
NAMES = ["ox", "owl", "red fox", "gnu", "great northern diver"]
SMALL = {"n_ctx": 3, "n_visual": 2, "top_k": 3}
DPT = {**SMALL, "method": "dpt"}


class Training(NamedTuple):
    """Three steps, the first two of them guidance, with the options of a `PromptConfig`."""

    config: dict[str, Any]
    classnames: list[str] = NAMES
    images: int = 5
    labels: int = 0  # the first image's; the others' follow
    class_chunk: int | None = None


TRAININGS = {
    "coop": Training({**SMALL, "method": "coop"}),
    "csc": Training({**SMALL, "method": "coop", "csc": True}),
    "phrase": Training({**SMALL, "method": "coop", "ctx_init": "a photo of"}),
    "front": Training({**SMALL, "method": "vlp", "class_token_position": "front"}),
    "middle": Training({**DPT, "class_token_position": "middle", "csc": True}),
    "shallow": Training({**SMALL, "method": "vpt", "visual_layers": 1}),
    "no visual prompts": Training({**DPT, "n_visual": 0}),
    "three class-aware layers": Training({**DPT, "class_aware_from": 1}),
    "every class selected": Training({**DPT, "top_k": 10}),
    "one class selected, few hits": Training({**DPT, "top_k": 1}),
    "chunks": Training(DPT, class_chunk=1),
    "fewer classes than ranks": Training(DPT, classnames=NAMES[:2]),
    "as many classes, csc": Training({**DPT, "csc": True}, classnames=NAMES[:3]),
    "one image": Training(DPT, images=1),
    "two images": Training({**SMALL, "method": "coop"}, images=2, labels=1),
}


class Trained(NamedTuple):
    losses: list[float]  # of the whole batch, in each step
    learned: dict[str, Tensor]
    changes: dict[str, Tensor]  # of what is learned, from the first value to the last
    logits: Tensor  # of all images of the first step, afterwards


def steps(model: minidpt.PromptedCLIP, batches: list, guided: int, epochs: int) -> Trained:
    """Make one rank's share of training steps as train.py does, with the golden cases' rates.

    `batches`: pairs of images (B, 3, R, R) and labels (B,), of all ranks.
    """
    world, losses = model.world, []
    before = {name: value.detach().clone() for name, value in model.prompt_state_dict().items()}
    optimizer = torch.optim.SGD(minidpt.parameter_groups(model), momentum=0.9, weight_decay=5e-4)
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            warmup = golden_cases.WARMUP_EPOCHS[group["name"]] if epochs < 20 else 0
            base = {"visual": 0.01, "text": 0.002}[group["name"]]
            group["lr"] = minidpt.learning_rate(step, base, epochs, warmup)
        shard, shard_labels = world.shard(images), world.shard(labels)
        if not len(shard):
            shard, shard_labels = images[:1] * 0, torch.tensor([NO_LABEL])
        loss = model.loss(model(shard), shard_labels, guidance=step < guided)
        optimizer.zero_grad()
        loss.backward()
        world.all_reduce_gradients(model.learned_parameters())
        optimizer.step()
        losses.append(world.all_reduce_sum(loss.detach()).item())
    with torch.no_grad():
        logits = model.eval()(batches[0][0]).logits
    learned = {name: value.detach() for name, value in model.prompt_state_dict().items()}
    changes = {name: value - before[name] for name, value in learned.items()}
    return Trained(losses, learned, changes, logits)


def train(name: str, world: World) -> Trained:
    """Train the model of one of `TRAININGS`."""
    case = TRAININGS[name]
    torch.manual_seed(0)
    config = minidpt.PromptConfig(**case.config)
    clip = shared_clip(WIDE)
    model = minidpt.build_model(clip, case.classnames, "a photo of a {}.", config, world)
    model.class_chunk = case.class_chunk
    batches = []
    for step in range(3):
        labels = (torch.arange(case.images) + case.labels + step) % len(case.classnames)
        batches.append((random_images(WIDE, case.images, seed=step), labels))
    return steps(model.train(), batches, guided=2, epochs=20)


@functools.lru_cache(maxsize=1)
def golden_clip() -> minidpt.CLIP:
    """Build the CLIP that all golden cases share."""
    return minidpt.build_clip(load_case(METHOD_CASES[0]).clip_weights())


def train_golden(name: str, world: World) -> Trained:
    """Train the model of a golden case as its stored trajectory was."""
    case = load_case(name)
    config = minidpt.PromptConfig(**case.config)
    clip = golden_clip()
    model = minidpt.build_model(clip, case.spec["classnames"], case.template, config, world)
    model.load_published(case.learned())
    batches = list(zip(*case.batches(), strict=True))
    trained = steps(model, batches, golden_cases.GUIDANCE_EPOCHS, case.spec["steps"])
    return trained._replace(learned=model.published())


def every_case(world: World) -> dict[str, Trained]:
    """Train all cases, the golden ones under "golden NAME"."""
    trained = {name: train(name, world) for name in TRAININGS}
    return trained | {f"golden {name}": train_golden(name, world) for name in METHOD_CASES}


def share_every_case(folder: Path, rank: int, size: int) -> None:
    """Train all cases as one process of a group, and write them to RANK-of-SIZE.pt."""
    store = distributed.FileStore(str(folder / f"store-{size}"), size)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    world = World(rank, size, rank, size, distributed.PrefixStore("minidpt", store))
    cases = {name: tuple(trained) for name, trained in every_case(world).items()}
    torch.save(cases, folder / f"{rank}-of-{size}.pt")


def main(folder: Path) -> None:
    """Fork the processes of all groups; SystemExit if one fails."""
    torch.set_num_threads(1)
    shared_clip(WIDE), golden_clip()  # made once; a process that has computed gradients cannot fork
    children = []
    for size in SIZES:
        for rank in range(size):
            children.append(os.fork())
            if not children[-1]:
                try:
                    share_every_case(folder, rank, size)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
    if any([os.waitpid(child, 0)[1] for child in children]):
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
