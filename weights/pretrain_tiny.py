"""Pretrain `weights/tiny.pt`, the small CLIP of the demo, from nothing.

    pip install resvg_py                                    # renders SVG; needed here only
    python weights/pretrain_tiny.py --pictures ~/tiny_pictures

It learns from two kinds of picture–caption pairs, contrastively as CLIP did:

- icons and clip art with their names, in the styles of several vendors, from packages on the npm
  and Debian registries (`PACKAGES`; sources and licences in NOTICE). They are fetched with
  `npm pack` and `apt-get download`, rendered once and pasted onto random backgrounds;
- scenes drawn by `minidpt.demo` in its plain style.

About an hour and a half on 2 CPU cores, minutes on a GPU; torch 2.9 or newer, for its Muon. The
file in this folder was made by two calls, 870,000 pictures in all (the first before `CLOSE_CROP`
was there, so its pasted pictures were not cropped):

    python weights/pretrain_tiny.py --pictures FOLDER --steps 2200 --out first.pt
    python weights/pretrain_tiny.py --pictures FOLDER --steps 1200 \\
        --init first.pt --lr 1e-3 --seed 1

The result is a TorchScript archive in fp16 with OpenAI's tensor names. The program inside it is not
meant to be run: minidpt reads the tensors only.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minidpt.checkpoint import read_state_dict  # noqa: E402
from minidpt.clip import CLIP  # noqa: E402
from minidpt.demo import BOOK_STYLE, THINGS, draw_scene  # noqa: E402
from minidpt.tokenizer import SOT_TOKEN, tokenize  # noqa: E402
from minidpt.transforms import normalize, random_resized_crop_box, resized_crop  # noqa: E402

RESOLUTION = 56  # 7×7 patches of 8 pixels: the same grid of tokens as ViT-B/32
WARMUP = 150  # steps
NEGATIVES = 300  # names that each picture is told from, beside the batch's own
CROP = (0.35, 1.0)  # share of a drawn scene that is seen,
CLOSE_CROP = (0.2, 1.0)  # and of half of the pasted pictures: few-shot training crops like this
SIZES = dict(
    embed_dim=128, resolution=RESOLUTION, vision_layers=4, vision_width=192, patch=8,
    context_length=77, vocab_size=49408, text_width=128, text_layers=3,
)  # fmt: skip

PACKAGES = {
    "emoji-datasource": "16.0.0",  # names and categories only
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/streamline-emojis": "1.2.4",
    "@lobehub/fluent-emoji-3d": "1.1.0",
}
CLIP_ART = "openclipart-png"  # a Debian package, public domain

KINDS = {  # Unicode's subcategory → what such a thing is
    "animal-mammal": ["mammal", "animal"], "animal-bird": ["bird", "animal"],
    "animal-bug": ["insect", "animal"], "animal-marine": ["sea animal", "animal"],
    "animal-reptile": ["reptile", "animal"], "plant-flower": ["flower", "plant"],
    "plant-other": ["plant"], "food-fruit": ["fruit", "food"],
    "food-vegetable": ["vegetable", "food"], "food-prepared": ["food"], "food-asian": ["food"],
    "food-sweet": ["dessert", "food"], "drink": ["drink"], "dishware": ["dish"],
    "place-building": ["building"], "place-religious": ["building"],
    "transport-ground": ["vehicle"],
    "transport-water": ["boat", "vehicle"], "transport-air": ["aircraft", "vehicle"],
    "transport-sign": ["sign"], "warning": ["road sign", "sign"], "clothing": ["clothes"],
    "musical-instrument": ["musical instrument"], "money": ["money"], "tool": ["tool"],
    "household": ["household thing"], "sport": ["sport"], "face-smiling": ["face"],
    "sky & weather": ["weather"], "office": ["office thing"], "book-paper": ["paper"],
    "person": ["person"], "person-role": ["person"], "person-sport": ["person"],
    "heart": ["heart"], "geometric": ["shape"], "arrow": ["arrow"], "phone": ["phone"],
}  # fmt: skip
LEFT_OUT = {"country-flag", "subdivision-flag", "family", "alphanum", "keycap", "skin-tone"}
ALSO = {"house": ["building"], "house with garden": ["house", "building"],
        "derelict house": ["house", "building"], "houses": ["house", "building"],
        "hut": ["house", "building"], "no entry": ["road sign", "sign"],
        "stop sign": ["road sign", "sign"], "coin": ["money"]}  # fmt: skip

FOLDERS = {  # of the clip art → what is in them
    "animals/mammals": ["mammal", "animal"], "animals/birds": ["bird", "animal"],
    "animals/bugs": ["insect", "animal"], "animals/fish": ["fish", "sea animal", "animal"],
    "plants/flowers": ["flower", "plant"], "plants/trees": ["tree", "plant"],
    "food/fruit": ["fruit", "food"], "food/vegetables": ["vegetable", "food"],
    "food/desserts": ["dessert", "food"], "food/beverages": ["drink"],
    "food/breads_and_carbs": ["bread", "food"], "food/meats_and_eggs": ["meat", "food"],
    "buildings/homes": ["house", "building"], "buildings/furniture": ["furniture"],
    "transportation/roadsigns": ["road sign", "sign"], "transportation/vehicles": ["vehicle"],
    "transportation/boating": ["boat", "vehicle"], "signs_and_symbols/money": ["money"],
    "signs_and_symbols/hazard": ["sign"], "signs_and_symbols/clocks": ["clock"],
    "people/clothing": ["clothes"], "recreation/music": ["musical instrument"],
    "recreation/sports": ["sport"], "recreation/toys": ["toy"], "tools": ["tool"],
    "education/books": ["book"], "animals/dinosaurs": ["dinosaur", "animal"],
    "electronics/bulb": ["light bulb"], "office/telephone": ["phone"], "containers": ["container"],
}  # fmt: skip

TEMPLATES = (
    "a photo of a {}.", "a photo of a {}.", "a photo of a {}.", "a drawing of a {}.",
    "a picture of a {}.", "a {}.", "{}", "a photo of the {}.", "an icon of a {}.", "a cartoon {}.",
)  # fmt: skip
KIND_TEMPLATES = ("a photo of a {}, a type of {}.", "a {}, which is a {}.", "{}, {}")


class Picture(NamedTuple):
    """A thing on transparent ground (64 × 64 RGBA), its name, and what kinds of thing it is."""

    pixels: np.ndarray
    name: str
    kinds: tuple[str, ...]


def fetch(folder: Path) -> None:
    """Download and unpack the packages that are not yet in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, version in PACKAGES.items():
        target = folder / package.replace("/", "_").lstrip("@")
        if not target.is_dir():
            run = ["npm", "pack", "--silent", f"{package}@{version}"]
            archive = subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True)
            with tarfile.open(folder / archive.stdout.split()[-1]) as tar:
                tar.extractall(target, filter="data")
    if not (folder / CLIP_ART).is_dir():
        subprocess.run(["apt-get", "download", CLIP_ART], cwd=folder, check=True)
        (deb,) = folder.glob(f"{CLIP_ART}_*.deb")
        subprocess.run(["dpkg", "-x", deb.name, CLIP_ART], cwd=folder, check=True)


def read_pictures(folder: Path) -> list[Picture]:
    """All pictures with names; rendered at the first call, then read from one file."""
    cache = folder / "pictures.npz"
    if not cache.is_file():
        kinds, slugs = emoji_kinds(folder)
        pictures = emoji_pictures(folder, kinds, slugs)
        pictures += clip_art_pictures(folder, {picture.name for picture in pictures})
        names = json.dumps([(picture.name, picture.kinds) for picture in pictures])
        np.savez(cache, pixels=np.stack([picture.pixels for picture in pictures]), names=names)
    stored = np.load(cache)
    names = json.loads(str(stored["names"]))
    return [Picture(p, n, tuple(k)) for p, (n, k) in zip(stored["pixels"], names, strict=True)]


def emoji_kinds(folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Emoji name → kinds, and code points → name."""
    listing = json.loads((folder / "emoji-datasource/package/emoji.json").read_text())
    subcategory = {}
    for emoji in listing:
        for code in filter(None, (emoji["unified"], emoji["non_qualified"])):
            subcategory[code.lower()] = emoji["subcategory"]
    characters = folder / "iconify-json_noto/package/chars.json"
    slugs = json.loads(characters.read_text())
    kinds = {}
    for code, slug in slugs.items():
        place = subcategory.get(code, subcategory.get(f"{code}-fe0f"))
        if place and place not in LEFT_OUT and not slug.startswith(("man-", "woman-")):
            name = slug.replace("-", " ")
            kinds[name] = ALSO.get(name, KINDS.get(place, []))
    return kinds, {code: slug.replace("-", " ") for code, slug in slugs.items()}


def emoji_pictures(
    folder: Path, kinds: dict[str, list[str]], names: dict[str, str]
) -> list[Picture]:
    """The named things of every icon set."""
    import resvg_py

    pictures = []
    for package in PACKAGES:
        home = folder / package.replace("/", "_").lstrip("@") / "package"
        if package.startswith("@iconify-json/"):
            icons = json.loads((home / "icons.json").read_text())
            codes = json.loads((home / "chars.json").read_text())
            by_slug = {slug: names[code] for code, slug in codes.items() if code in names}
            for slug, icon in icons["icons"].items():
                name = by_slug.get(slug, slug.replace("-", " "))
                if name in kinds:
                    svg = to_svg(icon, icons)
                    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=64, height=64))
                    pictures.append(Picture(to_pixels(io.BytesIO(png)), name, tuple(kinds[name])))
        for path in sorted((home / "assets").glob("*.webp")):
            name = names.get(path.stem, names.get(path.stem.replace("-fe0f", "")))
            if name in kinds:
                pictures.append(Picture(to_pixels(path), name, tuple(kinds[name])))
        print(f"{package}: {len(pictures)} pictures so far")
    return pictures


def to_svg(icon: dict, icons: dict) -> str:
    """One icon of an Iconify set as an SVG document."""
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def clip_art_pictures(folder: Path, nouns: set[str]) -> list[Picture]:
    """Clip art of the chosen folders; named by the file where that begins with a known noun."""
    root = folder / CLIP_ART / "usr/share/openclipart/png"
    pictures = []
    for place, kinds in FOLDERS.items():
        for path in sorted((root / place).rglob("*.png")):
            if path.stat().st_size > 2_000_000:  # a few drawings are poster sized
                continue
            words = path.stem.lower().replace("-", "_").split("_")
            name = next((w for w in ("_".join(words[:2]), words[0]) if w in nouns), kinds[0])
            pictures.append(Picture(to_pixels(path), name.replace("_", " "), tuple(kinds)))
    print(f"{CLIP_ART}: {len(pictures)} pictures")
    return pictures


def to_pixels(file) -> np.ndarray:
    """A picture file as 64 × 64 RGBA, its proportions kept."""
    image = Image.open(file).convert("RGBA")
    image.thumbnail((64, 64), Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (64, 64))
    canvas.paste(image, ((64 - image.width) // 2, (64 - image.height) // 2))
    return np.asarray(canvas)


class Pairs(torch.utils.data.IterableDataset):
    """Endless batches of (pictures uint8 (B, 3, R, R), captions, what is true of each picture)."""

    def __init__(self, pictures: list[Picture], batch_size: int, seed: str):
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed

    def __iter__(self):
        rng = random.Random(self.seed)
        while True:
            made = [self.pair(rng) for _ in range(self.batch_size)]
            images, captions, truths, said = zip(*made, strict=True)
            pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
            yield torch.from_numpy(pixels.copy()), captions, truths, said

    def pair(self, rng: random.Random):
        """A picture, a caption, all names true of the picture, the one that the caption says."""
        if rng.random() < 0.4:
            return drawn_pair(rng)
        image, *texts = self.pasted_pair(rng)
        if rng.random() < 0.5:
            box = random_resized_crop_box(*image.size, rng, CLOSE_CROP)
            image = resized_crop(image, box, RESOLUTION)
        return image, *texts

    def pasted_pair(self, rng: random.Random):
        """The same of one or two icons or pieces of clip art."""
        picture = rng.choice(self.pictures)
        ground = make_ground(rng)
        if rng.random() < 0.12:  # two things
            other = rng.choice(self.pictures)
            paste(ground, other, rng, rng.uniform(0.35, 0.6))
            paste(ground, picture, rng, rng.uniform(0.45, 0.7))
            name = f"{picture.name} and a {other.name}"
            truths = {name, picture.name, other.name}
            return ground, rng.choice(TEMPLATES).format(name), truths, name
        paste(ground, picture, rng, rng.uniform(0.5, 1.4))
        truths = {picture.name, *picture.kinds}
        if picture.kinds and rng.random() < 0.3:
            if rng.random() < 0.3:
                caption = rng.choice(KIND_TEMPLATES).format(picture.name, picture.kinds[0])
                return ground, caption, truths, picture.name
            kind = rng.choice(picture.kinds)
            return ground, rng.choice(TEMPLATES).format(kind), truths, kind
        return ground, rng.choice(TEMPLATES).format(picture.name), truths, picture.name


def drawn_pair(rng: random.Random):
    """A scene in the demo's plain style, with one or two things."""
    name = rng.choice(list(THINGS))
    others = rng.sample([thing for thing in THINGS if thing != name], 1) * (rng.random() < 0.25)
    scene = draw_scene(name, rng, BOOK_STYLE, 2 * RESOLUTION, others)
    scene = resized_crop(scene, random_resized_crop_box(*scene.size, rng, CROP), RESOLUTION)
    said = " and a ".join([name, *others])
    return jitter(scene, rng), rng.choice(TEMPLATES).format(said), {said, name, *others}, said


def make_ground(rng: random.Random) -> Image.Image:
    """White, one colour, a gradient or grain."""
    kind, size = rng.random(), (RESOLUTION, RESOLUTION)
    if kind < 0.35:
        return Image.new("RGB", size, "white")
    colour = tuple(rng.randrange(256) for _ in range(3))
    if kind < 0.7:
        return Image.new("RGB", size, colour)
    if kind < 0.85:
        corners = bytes(rng.randrange(256) for _ in range(12))
        return Image.frombytes("RGB", (2, 2), corners).resize(size, Image.Resampling.BICUBIC)
    side = rng.choice((7, 14, 28, 56))
    grain = Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)).resize(size)
    return Image.blend(Image.new("RGB", size, colour), grain, rng.uniform(0.1, 0.5))


def paste(ground: Image.Image, picture: Picture, rng: random.Random, size: float) -> None:
    """Put a thing, turned, mirrored and recoloured a little, somewhere on the ground."""
    thing = Image.fromarray(picture.pixels)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        thing = thing.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
    pixels = max(8, round(size * RESOLUTION))
    squeezed = round(pixels * rng.uniform(0.8, 1))
    thing = thing.resize((squeezed, pixels), Image.Resampling.BICUBIC)
    alpha = thing.getchannel("A")
    coloured = jitter(thing.convert("RGB"), rng)
    room = RESOLUTION - pixels
    place = (round(rng.random() * room), round(rng.random() * room))
    ground.paste(coloured, place, alpha)


def jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    """Another saturation, contrast and brightness."""
    if rng.random() < 0.6:
        saturation = 0 if rng.random() < 0.2 else rng.uniform(0.3, 1.7)
        image = ImageEnhance.Color(image).enhance(saturation)
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4))
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.3))
    return image


def initialise(clip: CLIP) -> None:
    """CLIP's initialisation: normal, by width and depth (Radford et al., appendix F)."""
    clip.logit_scale.data.fill_(math.log(1 / 0.07))
    torch.nn.init.normal_(clip.token_embedding.weight, std=0.02)
    torch.nn.init.normal_(clip.positional_embedding, std=0.01)
    torch.nn.init.normal_(clip.visual.positional_embedding, std=SIZES["vision_width"] ** -0.5)
    torch.nn.init.normal_(clip.visual.class_embedding, std=SIZES["vision_width"] ** -0.5)
    torch.nn.init.normal_(clip.visual.proj, std=SIZES["vision_width"] ** -0.5)
    torch.nn.init.normal_(clip.text_projection, std=SIZES["text_width"] ** -0.5)
    for tower in (clip.visual.transformer, clip.transformer):
        for block in tower.resblocks:
            width = block.ln_1.weight.shape[0]
            out = width**-0.5 * (2 * len(tower.resblocks)) ** -0.5
            torch.nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            torch.nn.init.normal_(block.attn.out_proj.weight, std=out)
            torch.nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            torch.nn.init.normal_(block.mlp.c_proj.weight, std=out)
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias,
                         block.mlp.c_fc.bias, block.mlp.c_proj.bias):  # fmt: skip
                torch.nn.init.zeros_(bias)


def contrastive_loss(clip: CLIP, images, texts, in_batch, in_bank) -> torch.Tensor:
    """CLIP's symmetric cross-entropy within the batch, plus each picture against a bank of names.

    The second part has more, and other, negatives than the batch.

    Args:
        images: (B, 3, R, R). texts: tokens (B + n, 77), of the captions and then of n names.
        in_batch: (B, B), in_bank: (B, n): which captions, and names, are true of each picture.
    """
    image_features = F.normalize(clip.encode_image(images).float(), dim=-1)
    text_features = F.normalize(clip.encode_text(texts).float(), dim=-1)
    with torch.autocast(images.device.type, enabled=False):
        logits = clip.logit_scale.exp() * image_features @ text_features.t()
    of_captions, of_bank = logits.split([in_batch.shape[1], in_bank.shape[1]], dim=1)
    return (
        cross_entropy(of_captions, in_batch) / 2
        + cross_entropy(of_captions.t(), in_batch.t()) / 2
        + cross_entropy(of_bank, in_bank)
    )


def cross_entropy(logits: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against all that is true, in equal shares; rows without any count nothing."""
    shares = truths / truths.sum(1, keepdim=True).clamp(min=1)
    return F.cross_entropy(logits, shares)


def matches(names, truths) -> torch.Tensor:
    """(B, n): 1 where the n-th name is among the truths of the picture."""
    return torch.tensor([[float(name in truth) for name in names] for truth in truths])


def pretrain(clip: CLIP, pictures: list[Picture], args: argparse.Namespace) -> None:
    """Warm-up, then a cosine to zero; Muon for the blocks' matrices, AdamW for the rest.

    Every 250 steps all that is needed to go on is written beside `args.out`; a later call with the
    same arguments goes on from there.
    """
    device = torch.device(args.device)
    matrices = [p for n, p in clip.named_parameters() if p.ndim == 2 and "resblocks" in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in clip.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0),
    ]
    state_file = args.out.with_suffix(".state")
    first = 0
    if state_file.is_file():
        state = torch.load(state_file, map_location=device, weights_only=True)
        first = state["step"]
        clip.load_state_dict(state["clip"])
        for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        print(f"going on from step {first}")
    pairs = Pairs(pictures, args.batch_size, f"{args.seed}/{first}")
    loader = iter(torch.utils.data.DataLoader(pairs, batch_size=None, num_workers=1))
    rng = random.Random(f"{args.seed}/{first}/texts")
    names = all_names(pictures)
    started, average = time.monotonic(), None
    for step in range(first, args.steps):
        progress = max(0, step - WARMUP) / max(1, args.steps - WARMUP)
        rate = args.lr * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress))
        images, captions, truths, said = next(loader)
        negatives = rng.sample(names, NEGATIVES)
        bank = sorted(set(negatives).union(*truths).intersection(names))
        template, beginning = rng.choice(TEMPLATES), random_beginning(rng)
        texts = [*captions, *(template.format(name) for name in bank)]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = contrastive_loss(
                clip,
                normalize(images.to(device)),
                behind(beginning, tokenize(texts)).to(device),
                matches(said, truths).to(device),
                matches(bank, truths).to(device),
            )
        clip.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        clip.logit_scale.data.clamp_(max=math.log(100))
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 49 or step == first:
            spent = time.monotonic() - started
            left = spent / (step + 1 - first) * (args.steps - step - 1)
            scale = clip.logit_scale.exp().item()
            print(f"step {step + 1}/{args.steps}  loss {average:.3f}  lr {rate:.2e}  "
                  f"scale {scale:.1f}  {spent:.0f} s, {left:.0f} s left", flush=True)  # fmt: skip
        if step % 250 == 249:
            states = [optimizer.state_dict() for optimizer in optimizers]
            content = {"step": step + 1, "clip": clip.state_dict(), "optimizers": states}
            torch.save(content, state_file.with_suffix(".part"))
            os.replace(state_file.with_suffix(".part"), state_file)
    state_file.unlink(missing_ok=True)


def random_beginning(rng: random.Random) -> list[int]:
    """Up to 24 random tokens, half of the time none.

    Captions are short: without this, positions from 10 on would never be trained, nor would names
    be understood behind a beginning like CoOp's, 16 random vectors.
    """
    if rng.random() < 0.5:
        return []
    return [rng.randrange(SOT_TOKEN) for _ in range(rng.randrange(1, 25))]


def behind(beginning: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """Token rows (n, 77) with `beginning` inserted after SOS."""
    shared = torch.tensor(beginning, dtype=tokens.dtype).expand(len(tokens), -1)
    return torch.cat([tokens[:, :1], shared, tokens[:, 1:]], dim=1)[:, : tokens.shape[1]]


def all_names(pictures: list[Picture]) -> list[str]:
    """Every name and kind that a caption can say of one thing."""
    return sorted({name for p in pictures for name in (p.name, *p.kinds)} | set(THINGS))


def write_archive(clip: CLIP, path: Path) -> None:
    """The model as OpenAI publishes its own: a TorchScript archive with fp16 tensors."""
    clip = clip.cpu().cast(torch.half).eval().requires_grad_(False)
    images = torch.zeros(1, 3, RESOLUTION, RESOLUTION, dtype=torch.half)
    tokens = tokenize("a photo of a dog.")
    torch.jit.save(torch.jit.trace(clip, (images, tokens), check_trace=False), str(path))


def main() -> None:
    """Fetch, render, pretrain, write."""
    parser = argparse.ArgumentParser(description="Pretrain weights/tiny.pt.")
    parser.add_argument("--pictures", type=Path, required=True, help="folder for downloads")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--init", type=Path, help="an earlier result to start from")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tiny.pt"))
    args = parser.parse_args()

    fetch(args.pictures)
    pictures = read_pictures(args.pictures)
    print(f"{len(pictures)} pictures of {len({p.name for p in pictures})} things")
    torch.manual_seed(args.seed)
    clip = CLIP(**SIZES).requires_grad_(True)
    initialise(clip)
    if args.init:
        clip.load_state_dict(read_state_dict(args.init))
    pretrain(clip.to(args.device), pictures, args)
    write_archive(clip, args.out)
    print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
