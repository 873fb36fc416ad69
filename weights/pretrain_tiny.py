"""Pretrain `weights/tiny.pt`, the small CLIP of the demo, from nothing.

    pip install resvg_py                                    # renders SVG; needed here only
    python weights/pretrain_tiny.py --pictures ~/tiny_pictures

It learns from two kinds of picture–caption pairs, contrastively as CLIP did:

- icons, silhouettes and clip art with their names, in the styles of several vendors, from packages
  on the npm and Debian registries (`PACKAGES`; sources and licences in NOTICE). They are fetched
  with `npm pack` and `apt-get download`, rendered once and pasted onto random backgrounds, most of
  them with the shading and texture that photographs have and drawings lack;
- scenes drawn by `minidpt.demo.demo` in its plain style.

Clip art whose file does not begin with the name of an emoji is named by its folder ("mammals").

A call takes one to two hours on 2 CPU cores; torch 2.9 or newer, for its Muon. The file in this
folder was made by five, from 3.25 million pictures in all. The first three were of earlier versions
of this script, without silhouettes and rounded shapes, and with captions that also said what kind
of thing a picture shows, as a tenth of the fourth's did. The third was begun with 3900 steps and
went on from step 1500; the fifth went on from the fourth's state, and its result is `tiny.pt`.

    python weights/pretrain_tiny.py --pictures FOLDER --steps 2200 --out first.pt
    python weights/pretrain_tiny.py --pictures FOLDER --steps 1200 \\
        --init first.pt --lr 1e-3 --seed 1 --out second.pt
    python weights/pretrain_tiny.py --pictures FOLDER --steps 2900 \\
        --init second.pt --lr 1.5e-3 --seed 2 --out third.pt
    torchrun --standalone --nproc-per-node 2 weights/pretrain_tiny.py --pictures FOLDER \\
        --steps 3400 --init third.pt --seed 5 --out fifth.pt  # stopped at step 750
    torchrun --standalone --nproc-per-node 2 weights/pretrain_tiny.py --pictures FOLDER \\
        --steps 3200 --seed 6 --out fifth.pt

Several processes, one for each core, take a batch each and average their gradients.

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
from PIL import Image, ImageEnhance, ImageFilter
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minidpt.checkpoints.reader import read_state_dict  # noqa: E402
from minidpt.clip.network import CLIP, TransformerSizes  # noqa: E402
from minidpt.clip.packing import pack  # noqa: E402
from minidpt.clip.tokenizer import EOT_TOKEN, SOT_TOKEN, encode, tokenize  # noqa: E402
from minidpt.demo.demo import Style, draw_scene  # noqa: E402
from minidpt.demo.things import THINGS  # noqa: E402
from minidpt.images.transforms import (  # noqa: E402
    normalize,
    random_resized_crop_box,
    resized_crop,
)
from minidpt.prompts import INIT_STD  # noqa: E402

BOOK_STYLE = Style(
    saturation=(0.4, 1.0),
    value=(0.35, 1.0),
    background=((0.0, 0.4), (0.6, 1.0)),
    outline=0.2,
    clutter=(0, 3),
    others=(0, 0),
    other_size=(0.4, 0.6),
    size=(0.5, 0.95),
    tilt=15,
    noise=0,
)
RESOLUTION = 56  # 7×7 patches of 8 pixels: the same grid of tokens as ViT-B/32
WARMUP = 150  # steps
NEGATIVES = 300  # names that each picture is told from, beside the batch's own
CROP = (0.35, 1.0)  # share of a drawn scene that is seen,
CLOSE_CROP = (0.2, 1.0)  # and of half of the pasted pictures: few-shot training crops like this
SEEN = 25  # patches of the 49 that a picture shows, until the last `WHOLE` of the steps show all
WHOLE = 0.2
SIZES = dict(
    embed_dim=128, resolution=RESOLUTION, patch=8, context_length=77, vocab_size=49408,
    vision=TransformerSizes(width=192, layers=4, heads=3, mlp_width=768),
    text=TransformerSizes(width=128, layers=3, heads=2, mlp_width=512),
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
    "@iconify-json/icon-park": "1.2.4",
    "@iconify-json/emojione-monotone": "1.2.1",
    "@iconify-json/fluent-emoji-high-contrast": "1.2.6",
    "@iconify-json/game-icons": "1.2.4",
    "@iconify-json/mdi": "1.2.3",
    "@lobehub/fluent-emoji-3d": "1.1.0",
}
CLIP_ART = "openclipart-png"  # a Debian package, public domain
SILHOUETTES = {  # sets of one colour → the word of a longer name that says what it is
    "@iconify-json/emojione-monotone": None, "@iconify-json/fluent-emoji-high-contrast": None,
    "@iconify-json/game-icons": -1, "@iconify-json/mdi": 0,  # honey-jar, flower-tulip
}  # fmt: skip

# categories of emoji that are chosen more often than faces, people and symbols
THING_CATEGORIES = {"Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places"}
LEFT_OUT = {"country-flag", "subdivision-flag", "family", "alphanum", "keycap", "skin-tone"}
FOLDERS = (  # of the clip art
    "animals/mammals", "animals/birds", "animals/bugs", "animals/fish", "animals/dinosaurs",
    "plants/flowers", "plants/trees", "food/fruit", "food/vegetables", "food/desserts",
    "food/beverages", "food/breads_and_carbs", "food/meats_and_eggs", "buildings/homes",
    "buildings/furniture", "transportation/roadsigns", "transportation/vehicles",
    "transportation/boating", "signs_and_symbols/money", "signs_and_symbols/hazard",
    "signs_and_symbols/clocks", "people/clothing", "recreation/music", "recreation/sports",
    "recreation/toys", "tools", "education/books", "electronics/bulb", "office/telephone",
    "containers",
)  # fmt: skip

TEMPLATES = (
    "a photo of a {}.", "a photo of a {}.", "a photo of a {}.", "a drawing of a {}.",
    "a picture of a {}.", "a {}.", "{}", "a photo of the {}.", "an icon of a {}.", "a cartoon {}.",
)  # fmt: skip


class Picture(NamedTuple):
    """A picture on transparent ground (64 × 64 RGBA) and its name.

    Things are chosen more often than faces, people and symbols. A silhouette is white; it gets its
    colours when it is pasted.
    """

    pixels: np.ndarray
    name: str
    is_thing: bool = True
    silhouette: bool = False


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
    cache = folder / "named_pictures.npz"
    if not cache.is_file():
        is_thing, slugs = emoji_names(folder)
        pictures = emoji_pictures(folder, is_thing, slugs)
        pictures += clip_art_pictures(folder, {picture.name for picture in pictures})
        names = json.dumps([picture[1:] for picture in pictures])
        np.savez(cache, pixels=np.stack([picture.pixels for picture in pictures]), names=names)
    stored = np.load(cache)
    names = json.loads(str(stored["names"]))
    return [Picture(pixels, *words) for pixels, words in zip(stored["pixels"], names, strict=True)]


def emoji_names(folder: Path) -> tuple[dict[str, bool], dict[str, str]]:
    """Emoji name → whether it is a thing, and code points → name."""
    listing = json.loads((folder / "emoji-datasource/package/emoji.json").read_text())
    places = {}
    for emoji in listing:
        for code in filter(None, (emoji["unified"], emoji["non_qualified"])):
            places[code.lower()] = (emoji["category"], emoji["subcategory"])
    characters = folder / "iconify-json_noto/package/chars.json"
    slugs = json.loads(characters.read_text())
    is_thing = {}
    for code, slug in slugs.items():
        place = places.get(code) or places.get(f"{code}-fe0f")
        if place and place[1] not in LEFT_OUT and not slug.startswith(("man-", "woman-")):
            is_thing[slug.replace("-", " ")] = place[0] in THING_CATEGORIES
    return is_thing, {code: slug.replace("-", " ") for code, slug in slugs.items()}


def emoji_pictures(folder: Path, is_thing: dict[str, bool], names: dict[str, str]) -> list[Picture]:
    """The pictures of every icon set that bear an emoji's name."""
    import resvg_py

    pictures = []
    for package in PACKAGES:
        home = folder / package.replace("/", "_").lstrip("@") / "package"
        if package.startswith("@iconify-json/"):
            icons = json.loads((home / "icons.json").read_text())
            characters = home / "chars.json"  # emoji sets have it, other icons do not
            codes = json.loads(characters.read_text()) if characters.is_file() else {}
            by_slug = {slug: names[code] for code, slug in codes.items() if code in names}
            silhouette, word = package in SILHOUETTES, SILHOUETTES.get(package)
            for slug, icon in icons["icons"].items():
                name = by_slug.get(slug, slug.replace("-", " "))
                words = slug.split("-")
                if name not in is_thing and word is not None and is_thing.get(words[word]):
                    name = words[word]
                if name in is_thing:
                    svg = to_svg(icon, icons)
                    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=64, height=64))
                    pixels = to_pixels(io.BytesIO(png))
                    if silhouette:
                        pixels[..., :3] = 255
                    pictures.append(Picture(pixels, name, is_thing[name], silhouette))
        for path in sorted((home / "assets").glob("*.webp")):
            name = names.get(path.stem, names.get(path.stem.replace("-fe0f", "")))
            if name in is_thing:
                pictures.append(Picture(to_pixels(path), name, is_thing[name]))
        print(f"{package}: {len(pictures)} pictures so far")
    return pictures


def to_svg(icon: dict, icons: dict) -> str:
    """One icon of an Iconify set as an SVG document."""
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def clip_art_pictures(folder: Path, nouns: set[str]) -> list[Picture]:
    """Clip art of the chosen folders, named by the emoji its file begins with, or the folder."""
    root = folder / CLIP_ART / "usr/share/openclipart/png"
    pictures = []
    for place in FOLDERS:
        contents = place.split("/")[-1].replace("_", " ")
        for path in sorted((root / place).rglob("*.png")):
            if path.stat().st_size > 2_000_000:  # a few drawings are poster sized
                continue
            words = path.stem.lower().replace("-", "_").split("_")
            name = next((w for w in (" ".join(words[:2]), words[0]) if w in nouns), contents)
            pictures.append(Picture(to_pixels(path), name))
    print(f"{CLIP_ART}: {len(pictures)} pictures")
    return pictures


def to_pixels(file) -> np.ndarray:
    """A picture file as 64 × 64 RGBA, its proportions kept."""
    image = Image.open(file).convert("RGBA")
    image.thumbnail((64, 64), Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (64, 64))
    canvas.paste(image, ((64 - image.width) // 2, (64 - image.height) // 2))
    return np.array(canvas)


class Pairs(torch.utils.data.IterableDataset):
    """Endless batches of what `pair` makes, the pictures as one uint8 tensor (B, 3, R, R)."""

    def __init__(self, pictures: list[Picture], batch_size: int, seed: str):
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed
        self.things = [picture for picture in pictures if picture.is_thing]

    def __iter__(self):
        rng = random.Random(self.seed)
        while True:
            made = [self.pair(rng) for _ in range(self.batch_size)]
            images, captions, truths, said = zip(*made, strict=True)
            pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
            yield torch.from_numpy(pixels.copy()), captions, truths, said

    def pair(self, rng: random.Random):
        """A picture, a caption, the names given to what it shows, the one that the caption says."""
        if rng.random() < 0.2:
            return drawn_pair(rng)
        image, *texts = self.pasted_pair(rng)
        if rng.random() < 0.5:
            box = random_resized_crop_box(*image.size, rng, CLOSE_CROP)
            image = resized_crop(image, box, RESOLUTION)
        return image, *texts

    def pasted_pair(self, rng: random.Random):
        """The same of one or two icons or pieces of clip art."""
        picture = rng.choice(self.things if rng.random() < 0.4 else self.pictures)
        ground = make_ground(rng)
        if rng.random() < 0.12:  # two things
            other = rng.choice(self.pictures)
            paste(ground, other, rng, rng.uniform(0.35, 0.6))
            paste(ground, picture, rng, rng.uniform(0.45, 0.7))
            name = f"{picture.name} and a {other.name}"
            truths = {name, picture.name, other.name}
            return ground, rng.choice(TEMPLATES).format(name), truths, name
        paste(ground, picture, rng, rng.uniform(0.5, 1.4))
        name = picture.name
        return ground, rng.choice(TEMPLATES).format(name), {name}, name


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
    if kind < 0.45:
        return Image.new("RGB", size, "white")
    colour = tuple(rng.randrange(256) for _ in range(3))
    if kind < 0.75:
        return Image.new("RGB", size, colour)
    if kind < 0.88:
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
    coloured = thing.convert("RGB")
    if picture.silhouette:
        corners = bytes(rng.randrange(200) for _ in range(12))
        coloured = Image.frombytes("RGB", (2, 2), corners)
        coloured = coloured.resize(thing.size, Image.Resampling.BILINEAR)
    coloured = jitter(coloured, rng)
    if rng.random() < 0.6:
        coloured = give_surface(coloured, alpha, rng)
    room = RESOLUTION - pixels
    place = (round(rng.random() * room), round(rng.random() * room))
    ground.paste(coloured, place, alpha)


def give_surface(image: Image.Image, alpha: Image.Image, rng: random.Random) -> Image.Image:
    """Rounded shape, light and texture, which photographs have and flat drawings lack."""
    width, height = image.size
    light = np.asarray([rng.uniform(-0.5, 0.5) for _ in range(4)], np.float32).reshape(2, 2)
    relief = enlarged(light, image.size)
    for amplitude in (rng.uniform(0, 0.4), rng.uniform(0, 0.3)):
        side = min(rng.choice((4, 8, 16, 32)), width, height)
        noise = np.frombuffer(rng.randbytes(side * side), np.uint8).reshape(side, side)
        relief = relief + amplitude * enlarged(noise / np.float32(127.5) - 1, image.size)
    radius = rng.uniform(0.04, 0.15) * height
    round_shape = np.asarray(alpha.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
    downwards, rightwards = np.gradient(round_shape)  # steep near the edge, flat in the middle
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2.5) * radius
    relief = relief + strength * (math.sin(angle) * downwards + math.cos(angle) * rightwards)
    shaded = np.asarray(image, np.float32) * (1 + relief)[..., None]
    return Image.fromarray(shaded.clip(0, 255).astype(np.uint8))


def enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A small field of numbers, smoothly drawn out to a picture's size."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    """Another saturation, contrast and brightness."""
    if rng.random() < 0.6:
        saturation = 0 if rng.random() < 0.1 else rng.uniform(0.4, 1.6)
        image = ImageEnhance.Color(image).enhance(saturation)
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4))
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.3))
    return image


def initialise(clip: CLIP) -> None:
    """CLIP's initialisation: normal, by width and depth (Radford et al., appendix F)."""
    clip.logit_scale.data.fill_(math.log(1 / 0.07))
    torch.nn.init.normal_(clip.token_embedding.weight, std=0.02)
    torch.nn.init.normal_(clip.positional_embedding, std=0.01)
    torch.nn.init.normal_(clip.visual.positional_embedding, std=SIZES["vision"].width ** -0.5)
    torch.nn.init.normal_(clip.visual.class_embedding, std=SIZES["vision"].width ** -0.5)
    torch.nn.init.normal_(clip.visual.proj, std=SIZES["vision"].width ** -0.5)
    torch.nn.init.normal_(clip.text_projection, std=SIZES["text"].width ** -0.5)
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


def image_features(clip: CLIP, images: torch.Tensor, seen: int) -> torch.Tensor:
    """Features (B, E) from the class token and `seen` random patches of each picture.

    Half of the patches cost half of the time, and a model that has to do with any half of them does
    not lean on one detail (Li et al., FLIP, arXiv 2212.00794).
    """
    tokens = clip.visual.embed(images)  # (B, N, D)
    order = torch.rand(tokens.shape[:2], device=tokens.device)
    order[:, 0] = 2  # the class token comes first
    chosen = order.argsort(dim=1, descending=True)[:, : 1 + seen, None]
    return clip.visual.encode(tokens.gather(1, chosen.expand(-1, -1, tokens.shape[-1])))


def text_features(clip: CLIP, texts: list[str], rng: random.Random) -> torch.Tensor:
    """Features (n, E) of texts, half of the time behind a beginning that says nothing.

    Captions are short: without it, positions from 10 on would never be trained, nor would names be
    understood behind a beginning like CoOp's, 16 random vectors. It is of random tokens or of such
    vectors, the same for all texts.
    """
    length = rng.randrange(1, 25) if rng.random() < 0.5 else 0
    beginning = [rng.randrange(SOT_TOKEN) for _ in range(length)]
    room = clip.context_length - length
    said = [encode(text)[: room - 2] for text in texts]
    layout = pack([[SOT_TOKEN, *beginning, *words, EOT_TOKEN] for words in said]).to(clip.device)
    x = clip.embed_packed(layout)  # (S, W)
    if rng.random() < 0.5:
        vectors = INIT_STD * torch.randn(length, x.shape[1], device=x.device)
        rows = slice(1, 1 + length)  # within the prefix that all prompts share
        x = torch.cat([x[:1], vectors + clip.positional_embedding[rows], x[1 + length :]])
    return clip.encode_packed(x, layout)


def contrastive_loss(
    clip: CLIP, image_features: torch.Tensor, text_features: torch.Tensor, of_batch, of_bank
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy within the batch, plus each picture against a bank of names.

    The second part has more, and other, negatives than the batch.

    Args:
        image_features: (B, E). text_features: (B + n, E), of the captions and then of n names.
        of_batch, of_bank: `Matches` of the pictures with the captions and with the names.
    """
    image_features = F.normalize(image_features.float(), dim=-1)
    text_features = F.normalize(text_features.float(), dim=-1)
    with torch.autocast(image_features.device.type, enabled=False):
        logits = clip.logit_scale.exp() * image_features @ text_features.t()
    captions, bank = logits.split([of_batch.said.shape[1], of_bank.said.shape[1]], dim=1)
    return (
        cross_entropy(captions, of_batch) / 2
        + cross_entropy(captions.t(), Matches(of_batch.said.t(), of_batch.true.t())) / 2
        + cross_entropy(bank, of_bank)
    )


class Matches(NamedTuple):
    """Which names (B, n) are what the picture's caption says, and which are true of it as well."""

    said: torch.Tensor
    true: torch.Tensor


def cross_entropy(logits: torch.Tensor, matches: Matches) -> torch.Tensor:
    """Cross-entropy against what was said, in equal shares; what is true as well is no negative."""
    logits = logits.masked_fill(matches.true & ~matches.said, -math.inf)
    shares = matches.said / matches.said.sum(1, keepdim=True)
    return -(shares * logits.log_softmax(dim=1)).where(matches.said, 0).sum(1).mean()


def matches(
    names: list[str], said: list[str], truths: list[set[str]], device: torch.device
) -> Matches:
    """Of each picture, what was said of it and what is true, with each of the names."""
    as_said = [[name == own for name in names] for own in said]
    true = [[name in own for name in names] for own in truths]
    return Matches(torch.tensor(as_said, device=device), torch.tensor(true, device=device))


def pretrain(clip: CLIP, pictures: list[Picture], args: argparse.Namespace) -> None:
    """Warm-up, then a cosine to zero; Muon for the blocks' matrices, AdamW for the rest.

    Where torchrun has started several processes, each has batches of its own and they average their
    gradients. Every 250 steps all that is needed to go on is written beside `args.out`; a later
    call with the same `--out` goes on from there.
    """
    device = torch.device(args.device)
    rank, processes = process_of_several()
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
    seed = f"{args.seed}/{first}/{rank}"
    torch.manual_seed(random.Random(seed).randrange(2**32))
    pairs = Pairs(pictures, args.batch_size, seed)
    workers = 1 if device.type == "cuda" else 0  # on a CPU the products need all cores
    loader = iter(torch.utils.data.DataLoader(pairs, batch_size=None, num_workers=workers))
    rng = random.Random(f"{seed}/texts")
    names = all_names(pictures)
    started, average = time.monotonic(), None
    for step in range(first, args.steps):
        progress = max(0, step - WARMUP) / max(1, args.steps - WARMUP)
        rate = args.lr * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress))
        images, captions, truths, said = next(loader)
        bank = sorted({*rng.sample(names, NEGATIVES), *said})
        template = rng.choice(TEMPLATES)
        texts = [*captions, *(template.format(name) for name in bank)]
        patches = clip.visual.positional_embedding.shape[0] - 1
        seen = patches if step >= (1 - WHOLE) * args.steps else SEEN
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = contrastive_loss(
                clip,
                image_features(clip, normalize(images.to(device)), seen),
                text_features(clip, texts, rng),
                matches(list(said), said, truths, device),
                matches(bank, said, truths, device),
            )
        clip.zero_grad(set_to_none=True)
        loss.backward()
        if processes > 1:
            for parameter in clip.parameters():
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= processes
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        clip.logit_scale.data.clamp_(max=math.log(100))
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if rank == 0 and (step % 50 == 49 or step == first):
            spent = time.monotonic() - started
            left = spent / (step + 1 - first) * (args.steps - step - 1)
            scale = clip.logit_scale.exp().item()
            print(f"step {step + 1}/{args.steps}  loss {average:.3f}  lr {rate:.2e}  "
                  f"scale {scale:.1f}  {spent:.0f} s, {left:.0f} s left", flush=True)  # fmt: skip
        if rank == 0 and step % 250 == 249:
            states = [optimizer.state_dict() for optimizer in optimizers]
            content = {"step": step + 1, "clip": clip.state_dict(), "optimizers": states}
            torch.save(content, state_file.with_suffix(".part"))
            os.replace(state_file.with_suffix(".part"), state_file)
    if rank == 0:
        write_archive(clip, args.out)
        print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")
        state_file.unlink(missing_ok=True)


def all_names(pictures: list[Picture]) -> list[str]:
    """Every name that a caption can say of one thing."""
    return sorted({picture.name for picture in pictures} | set(THINGS))


def write_archive(clip: CLIP, path: Path) -> None:
    """The model as OpenAI publishes its own: a TorchScript archive with fp16 tensors."""
    clip = clip.cpu().cast(torch.half).eval().requires_grad_(False)
    images = torch.zeros(1, 3, RESOLUTION, RESOLUTION, dtype=torch.half)
    tokens = tokenize("a photo of a dog.")
    torch.jit.save(torch.jit.trace(clip, (images, tokens), check_trace=False), str(path))


def process_of_several() -> tuple[int, int]:
    """Which process this is, from 0, and of how many, as torchrun tells."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def main() -> None:
    """Fetch, render, pretrain, write."""
    parser = argparse.ArgumentParser(description="Pretrain weights/tiny.pt.")
    parser.add_argument("--pictures", type=Path, required=True, help="folder for downloads")
    parser.add_argument("--steps", type=int, default=3900)
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--init", type=Path, help="an earlier result to start from")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tiny.pt"))
    args = parser.parse_args()

    rank, processes = process_of_several()
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    if rank == 0:  # the others wait until all is fetched and rendered
        fetch(args.pictures)
        read_pictures(args.pictures)
    if processes > 1:
        torch.distributed.barrier()
    pictures = read_pictures(args.pictures)
    print(f"{len(pictures)} pictures with {len({p.name for p in pictures})} names")
    torch.manual_seed(args.seed)
    clip = CLIP(**SIZES).requires_grad_(True)
    initialise(clip)
    if args.init:
        clip.load_state_dict(read_state_dict(args.init))
    pretrain(clip.to(args.device), pictures, args)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
