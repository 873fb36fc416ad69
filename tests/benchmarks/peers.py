"""minidpt's plain CLIP beside open_clip's and Hugging Face's: equal outputs, and how fast.

    pip install open_clip_torch transformers
    python tests/benchmarks/peers.py                              # fp32 and bf16, 1000 classes
    python tests/benchmarks/peers.py --classes 100 --fp32-only --runs 3   # a minute

ViT-B/32 with one set of random weights (`steps.py`) and the same pictures, on the CPU: image
features of a batch; text features of class names, of all 77 tokens in open_clip, of as many as the
longest has in transformers, as their tokenizers give them; logits of a zero-shot batch, the text
features being known. Each peer takes turns with minidpt in one process; printed is the median over
the pairs of how many times as long as minidpt it takes, and minidpt's own time.

It fails unless fp32 outputs are equal to 1e-5 (norm of the difference by norm), bf16 ones are no
farther from fp32 than the peer's own, and minidpt has at least 0.97 times a peer's speed.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch
from steps import classnames, tiny_models, weights
from torch import Tensor
from torch.nn import functional as F

import minidpt
from minidpt.runs.config import PRECISIONS
from minidpt.runs.devices import keep_freed_memory, move_clip

TASKS = ("image features", "text features", "zero-shot batch")
TEMPLATE = "a photo of a {}."
SLOWEST = 0.97  # times a peer's speed
HUGGING_FACE = {  # OpenAI's names of tensors and modules, and transformers'
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}
IN_BLOCKS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
             "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}  # fmt: skip


class Ours:
    """The package."""

    def __init__(self, names: list[str], precision: str):
        self.clip = move_clip(minidpt.build_clip(weights()), torch.device("cpu"), precision)
        self.tokens = minidpt.tokenize([TEMPLATE.format(name) for name in names])
        config = minidpt.PromptConfig(method="zeroshot")
        self.model = minidpt.build_model(self.clip, names, TEMPLATE, config)

    def image(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)

    def text(self) -> Tensor:
        return self.clip.encode_text(self.tokens)

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images).logits


class Peer:
    """A model of another library; its classifier is computed when it is first asked for."""

    classifier: Tensor | None = None

    def __init__(self, names: list[str], precision: str):
        self.dtype = PRECISIONS[precision]
        self.tokens = minidpt.tokenize([TEMPLATE.format(name) for name in names])

    def logits(self, images: Tensor) -> Tensor:
        if self.classifier is None:
            self.classifier = F.normalize(self.text().float(), dim=-1)
        features = F.normalize(self.image(images).float(), dim=-1)
        return self.model.logit_scale.exp().float() * features @ self.classifier.t()


class OpenClip(Peer):
    """open_clip."""

    def __init__(self, names: list[str], precision: str):
        import open_clip

        super().__init__(names, precision)
        self.model = open_clip.create_model("ViT-B-32-quickgelu", precision=precision).eval()
        self.model.load_state_dict(weights())

    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images.to(self.dtype))

    def text(self) -> Tensor:
        return self.model.encode_text(self.tokens)


class Transformers(Peer):
    """Hugging Face transformers."""

    def __init__(self, names: list[str], precision: str):
        from transformers import CLIPConfig, CLIPModel

        super().__init__(names, precision)
        ends = self.tokens.argmax(dim=-1)
        self.tokens = self.tokens[:, : ends.max() + 1]
        self.mask = (torch.arange(self.tokens.shape[1]) <= ends.unsqueeze(1)).long()
        self.model = CLIPModel(CLIPConfig()).eval()  # its defaults are ViT-B/32's sizes
        self.model.load_state_dict(in_hugging_faces_names(weights()))
        self.model.to(self.dtype)

    def image(self, images: Tensor) -> Tensor:
        vision = self.model.vision_model(pixel_values=images.to(self.dtype))
        return self.model.visual_projection(vision.pooler_output)

    def text(self) -> Tensor:
        text = self.model.text_model(input_ids=self.tokens, attention_mask=self.mask)
        return self.model.text_projection(text.pooler_output)


def in_hugging_faces_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under OpenAI's names → the same under those of transformers' CLIPModel."""
    renamed = {}
    for name, value in tensors.items():
        if name in ("visual.proj", "text_projection"):
            side = "visual" if name == "visual.proj" else "text"
            renamed[f"{side}_projection.weight"] = value.t()
            continue
        known = next(known for known in HUGGING_FACE if (name + ".").startswith(known + "."))
        name = HUGGING_FACE[known] + name[len(known) :]
        for ours, theirs in IN_BLOCKS.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        if ".attn.in_proj_" in name:
            for part, own in zip("qkv", value.chunk(3), strict=True):
                theirs = f".self_attn.{part}_proj."
                renamed[name.replace(".attn.in_proj_", theirs)] = own
        else:
            renamed[name] = value
    return renamed


def distance(got: Tensor, expected: Tensor) -> float:
    """The norm of their difference by the expected one's."""
    return ((got.float() - expected).norm() / expected.norm()).item()


def work(side: Ours | Peer, task: str, images: Tensor) -> Callable[[], Tensor]:
    """What a side does for a task."""
    if task == "text features":
        return side.text
    return lambda: (side.image if task == "image features" else side.logits)(images)


def seen(task: str, output: Tensor) -> Tensor:
    """What of an output counts: of logits how they differ, which is all that a softmax sees."""
    if task == "zero-shot batch":
        return output - output.mean(dim=-1, keepdim=True)
    return output


def timed(task: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


@torch.no_grad()
def compare(
    kind: type, names: list[str], precision: str, images: Tensor, runs: int, exact: dict
) -> tuple[list[str], list[str]]:
    """Cells of a table, one for each task, and what is wrong.

    exact: by side and task the outputs in fp32, which are noted here.
    """
    ours, peer = Ours(names, precision), kind(names, precision)
    cells, wrong = [], []
    for task in TASKS:
        own, theirs = work(ours, task, images), work(peer, task, images)
        outputs = [seen(task, run()) for run in (own, theirs)]
        if precision == "fp32":
            exact[kind, task] = outputs[1]
        off, bound = (distance(output, exact[kind, task]) for output in outputs)
        bound = bound or 1e-5
        pairs = [(timed(own), timed(theirs)) for _ in range(runs)]
        ratio = statistics.median(other / mine for mine, other in pairs)
        seconds = statistics.median(mine for mine, _ in pairs)
        cells.append(f"{ratio:.2f}× ({seconds:.2f} s; off {off:.0e}, at most {bound:.0e})")
        if not off <= bound:
            wrong.append(f"{kind.__name__}, {precision}, {task}: off by {off:.1e}, not {bound:.1e}")
        if ratio < SLOWEST:
            wrong.append(f"{kind.__name__}, {precision}, {task}: {ratio:.2f} times its speed")
    return cells, wrong


def main() -> int:
    """Measure and print a Markdown table; 1 if something is farther off or slower than allowed."""
    parser = argparse.ArgumentParser(description="minidpt beside open_clip and transformers.")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--fp32-only", action="store_true", help="where bf16 takes minutes")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    try:
        import open_clip
        import transformers
    except (ImportError, RuntimeError) as error:  # RuntimeError: of a torchvision for another torch
        print(f"peers.py: expected open_clip and transformers: pip install open_clip_torch "
              f"transformers ({error})", file=sys.stderr)  # fmt: skip
        return 2
    keep_freed_memory()
    tiny_models.clip_state.cache_clear()
    torch.manual_seed(0)
    names, images = classnames(args.classes), torch.randn(args.batch, 3, 224, 224)
    versions = f"open_clip {open_clip.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    heads = f"image features, batch {args.batch} | text features of {args.classes} names"
    print(
        f"| precision | beside | {heads} | zero-shot batch of {args.batch} |\n|---|---|---|---|---|"
    )
    exact, wrong = {}, []
    for precision in ("fp32", "bf16")[: 1 if args.fp32_only else 2]:
        for kind in (OpenClip, Transformers):
            cells, more = compare(kind, names, precision, images, args.runs, exact)
            wrong += more
            print(f"| {precision} | {kind.__doc__[:-1]} | {' | '.join(cells)} |", flush=True)
            gc.collect()
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
