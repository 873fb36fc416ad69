"""Damaged and hostile images: each ends in an RGB view or in an error of one line.

`run(n, seed)` tries n mutated files and returns the failures: a few here, in numbers by
`benchmarks/fuzz.py`.
`benchmarks/fuzz.py`.
"""

import io
import random
import struct
import warnings
import zlib
from functools import cache

import numpy as np
from PIL import Image

from minidpt.images import decode, transforms

RESOLUTION = 16
NUMBERS = (0, 1, 2, 4, 7, 255, 256, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


@cache
def seeds() -> list[bytes]:
    """Small valid files of all formats and of many modes."""
    noise = np.random.default_rng(0).integers(0, 256, (19, 23, 4), np.uint8)
    rgba = Image.fromarray(noise)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted = [
        (rgb, "JPEG", {"exif": exif}),
        (grey, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {"exif": exif}),
        (rgba, "PNG", {}),
        (rgb.quantize(9), "PNG", {"transparency": bytes(9)}),
        (deep, "PNG", {"transparency": 0}),
        (rgba, "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (grey, "TIFF", {"exif": exif}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (Image.fromarray(noise[..., 0].astype(np.float32)), "TIFF", {}),
        (rgb, "WEBP", {"exif": exif}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb.quantize(9), "GIF", {"save_all": True, "append_images": [grey], "comment": b"c"}),
        (rgb, "BMP", {}),
        (rgb.quantize(9), "BMP", {}),
        (rgb, "PPM", {}),
        (deep, "PPM", {}),
        (grey.convert("1"), "PPM", {}),
    ]
    files = []
    for image, kind, options in wanted:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files.append(stream.getvalue())
    return files


def mutated(generator: random.Random) -> bytes:
    """One of the files with bytes changed, cut, doubled or moved, or numbers put in."""
    content = bytearray(generator.choice(seeds()))
    header = generator.random() < 0.6  # where most of the meaning lies
    for _ in range(generator.choice((1, 1, 2, 3, 8))):
        end = min(len(content), 90) if header else len(content)
        start = generator.randrange(max(1, end))
        length = generator.choice((1, 2, 4, 16, 64))
        kind = generator.randrange(6)
        if kind == 0 and start < len(content):
            content[start] ^= 1 << generator.randrange(8)
        elif kind == 1:
            number = generator.choice(NUMBERS)
            packed = struct.pack(generator.choice("<>") + "I", number)
            content[start : start + 4] = packed[: generator.choice((2, 4))]
        elif kind == 2:
            del content[start : start + length]
        elif kind == 3:
            content[start:start] = content[start : start + length] * generator.choice((1, 2, 50))
        elif kind == 4:
            del content[generator.randrange(len(content) + 1) :]
        else:
            content[start : start + length] = generator.randbytes(length)
    if content[:4] == b"\x89PNG" and generator.random() < 0.8:
        content = with_checksums(content)
    return bytes(content)


def with_checksums(png: bytearray) -> bytearray:
    """A PNG whose chunks have the right checksums, so that what is in them is looked at."""
    start = 8
    while start + 12 <= len(png):
        (length,) = struct.unpack(">I", png[start : start + 4])
        end = start + 8 + length
        if end + 4 > len(png):
            break
        png[end : end + 4] = struct.pack(">I", zlib.crc32(png[start + 4 : end]))
        start = end + 4
    return png


def failure(content: bytes, seed: int) -> str | None:
    """What is wrong about how the file is read, if something is."""
    try:
        image = decode.open_image(io.BytesIO(content))
        for view in (
            transforms.eval_transform(image, RESOLUTION),
            transforms.train_transform(image, RESOLUTION, random.Random(seed)),
        ):
            if (view.mode, view.size) != ("RGB", (RESOLUTION, RESOLUTION)):
                return f"a view of {view.size} in {view.mode}"
    except ValueError as error:
        text = str(error)
        if "\n" in text or len(text) > 500 or not text.isprintable() or "image" not in text:
            return f"the error {text!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def run(n: int, seed: int) -> list[tuple[bytes, str]]:
    """Files (of n that were tried) that are read wrongly, and how."""
    generator, failures = random.Random(f"pictures/{seed}"), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        for number in range(n):
            content = mutated(generator)
            if wrong := failure(content, number):
                failures.append((content, wrong))
    return failures


def test_mutated_images_end_in_a_view_or_in_one_line(monkeypatch):
    views, transform = [], transforms.eval_transform
    noting = lambda *arguments: views.append(arguments) or transform(*arguments)  # noqa: E731
    monkeypatch.setattr(transforms, "eval_transform", noting)
    assert [failure(content, 0) for content in seeds()] == [None] * len(views)
    views.clear()
    assert run(600, seed=1) == []
    assert 100 < len(views) < 500  # neither are all taken nor all refused
