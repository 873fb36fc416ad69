"""Images are read as a person sees them; what is no image is refused."""

import io
import math
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from helpers.reference_images import draw_pattern
from PIL import Image

from minidpt.images import decode
from minidpt.images.decode import WhiteLevel, check_white_level

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)  # left, right half; background


def flag(size=(32, 16)) -> Image.Image:
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def saved(folder, image, name="a.png", **options):
    image.save(folder / name, **options)
    return decode.open_image(folder / name)


def assert_shows(image, left, right, within=0):
    assert image.mode == "RGB" and image.size == (32, 16)
    for x, color in [(4, left), (27, right)]:
        assert np.abs(np.subtract(image.getpixel((x, 8)), color)).max() <= within


@pytest.mark.parametrize(
    ("name", "within"),
    [("a.png", 0), ("a.bmp", 0), ("a.tiff", 0), ("a.gif", 0), ("a.ppm", 0)]
    + [("a.JPG", 6), ("a.webp", 12)],  # lossy, with coarser colours
)
def test_file_formats(tmp_path, name, within):
    assert_shows(saved(tmp_path, flag(), name), RED, BLUE, within)


def test_palette_with_a_see_through_colour(tmp_path):
    image = flag().quantize(2)
    see_through = image.getpixel((27, 8))
    assert_shows(saved(tmp_path, image, transparency=see_through), RED, WHITE)
    alphas = bytes(0 if index == see_through else 255 for index in range(2))
    assert_shows(saved(tmp_path, image, "b.png", transparency=alphas), RED, WHITE)
    assert_shows(saved(tmp_path, image, "a.gif", transparency=see_through), RED, WHITE)


def test_cmyk_jpeg(tmp_path):
    image = Image.new("CMYK", (32, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    image.paste((255, 255, 0, 0), (16, 0, 32, 16))
    assert_shows(saved(tmp_path, image, "a.jpg", quality=95), RED, BLUE, within=6)


def png_of(*chunks: tuple[bytes, bytes], rows=b"\0\0", header=(1, 1, 8, 0)) -> bytes:
    """A PNG, by default of one black pixel, with more chunks before its rows.

    header: width, height, bits of a colour, kind of colours.
    """
    ends = [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in [(b"IHDR", struct.pack(">IIBB3x", *header)), *chunks, *ends]:
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    return content


@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_colour(tmp_path, alpha):
    # Pillow cannot write it: a PNG by hand, its values in big-endian pairs of bytes
    left, right = [0xFFFF, 0x8080, 0], [0, 0x4040, 0xFFFF]
    pixels = [left + [0xFFFF] * alpha] * 16 + [right + [0] * alpha] * 16  # the right is see-through
    row = b"\0" + np.array(pixels, ">u2").tobytes()
    header = (32, 16, 16, 6 if alpha else 2)
    (tmp_path / "a.png").write_bytes(png_of(rows=row * 16, header=header))
    shown = decode.open_image(tmp_path / "a.png")
    assert_shows(shown, (255, 128, 0), WHITE if alpha else (0, 64, 255), within=1)


def test_alpha_lies_over_white(tmp_path):
    image = flag().convert("RGBA")
    image.paste((0, 0, 0, 51), (16, 0, 32, 16))  # black at 20 % over white: 80 % grey
    assert_shows(saved(tmp_path, image), RED, (204, 204, 204))
    grey = Image.new("LA", (32, 16), (0, 255))
    grey.paste((0, 0), (16, 0, 32, 16))
    assert_shows(saved(tmp_path, grey, "b.png"), (0, 0, 0), WHITE)


# What a camera stores of an upright image u for each EXIF orientation; the standard says which
# visual side the stored first row and first column are (6: row = right side, column = top).
STORED = {
    1: lambda u: u,  # top, left
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u.swapaxes(0, 1)[::-1],  # right, top
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotated(tmp_path, orientation, name):
    upright = np.asarray(draw_pattern())
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = saved(tmp_path, stored, name, exif=exif)
    assert np.array_equal(np.asarray(image), upright)
    assert np.array_equal(np.asarray(decode.open_image(image)), upright)  # not turned again
    with Image.open(tmp_path / name) as unloaded:  # Pillow itself turns a TIFF while it loads it
        assert np.array_equal(np.asarray(decode.open_image(unloaded)), upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_unreadable_exif_leaves_the_image_as_it_is(tmp_path, exif):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow may warn, the image is fine
        assert_shows(saved(tmp_path, flag(), "a.jpg", exif=exif), RED, BLUE, within=6)


def test_first_frame_of_an_animation(tmp_path):
    flag().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (32, 16))])
    assert_shows(decode.open_image(tmp_path / "a.gif"), RED, BLUE)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tiff", "a.gif", "a.webp", "a.ppm"])
def test_truncated_file_is_named(tmp_path, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in (0, 10, len(content) // 2):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"image .*{name}: expected a readable") as error:
            decode.open_image(tmp_path / name)
        assert "\n" not in str(error.value)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("words")
    flag().save(tmp_path / "b.eps")  # Pillow would start Ghostscript for it
    (tmp_path / "b.eps").rename(tmp_path / "b.jpg")
    for name in ("a.png", "b.jpg"):  # no decoder of ours
        with pytest.raises(ValueError, match="expected a readable image .*something else"):
            decode.open_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=f"^image {tmp_path}: expected a file, got a f"):
        decode.open_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="^image '': expected a file, got none"):
        decode.open_image("")
    with pytest.raises(FileNotFoundError, match="none.png: expected a file, got none"):
        decode.open_image(tmp_path / "none.png")


def test_pillows_limit_of_pixels_counts_in_the_library(tmp_path, monkeypatch):
    flag().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # of 512: a warning
    with pytest.warns(Image.DecompressionBombWarning):
        decode.open_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 255)
    with pytest.raises(ValueError, match="a.png: expected fewer pixels, got: .*512.*--max-pixels"):
        decode.open_image(tmp_path / "a.png")


def test_a_scripts_limit_of_pixels_is_its_own_and_without_a_warning(tmp_path, monkeypatch):
    flag().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back at the end
    with warnings.catch_warnings():
        decode.set_max_pixels(512)
        assert_shows(decode.open_image(tmp_path / "a.png"), RED, BLUE)
        decode.set_max_pixels(510)
        with pytest.raises(ValueError, match="a.png: expected fewer pixels.* limit of 510 pixels"):
            decode.open_image(tmp_path / "a.png")


# ---- the level of white of images of more than 8 bits


def save_high_bit_depth(folder, name: str, *values: float, kind=np.uint16):
    """A grey image of two values, left and right, of more than 8 bits."""
    pixels = np.repeat(np.array([values], kind), 16, axis=0).repeat(32 // len(values), axis=1)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_a_white_level_shows_images_by_it_and_clips_brighter_values(tmp_path):
    for name in ("a.png", "a.tiff"):
        path = save_high_bit_depth(tmp_path, name, 1023, 4095)
        assert_shows(decode.open_image(path, WhiteLevel(integer=1023)), WHITE, WHITE)
        assert_shows(decode.open_image(path, WhiteLevel(integer=4095)), (64,) * 3, WHITE)  # 63.7
        assert_shows(decode.open_image(path), (4,) * 3, (16,) * 3)  # of 65535
        assert_shows(decode.open_image(path, WhiteLevel(float=1.0)), (4,) * 3, (16,) * 3)
    path = save_high_bit_depth(tmp_path, "b.tiff", 51, 102, kind=np.float32)
    assert_shows(decode.open_image(path, WhiteLevel(float=65535)), (0,) * 3, (0,) * 3)
    assert_shows(decode.open_image(path, WhiteLevel(float=255)), (51,) * 3, (102,) * 3)
    path = save_high_bit_depth(tmp_path, "c.tiff", 2**30, 2**31 - 1, kind=np.int32)
    assert_shows(decode.open_image(path), (128,) * 3, WHITE)


@pytest.mark.parametrize(
    ("kind", "largest", "white"),
    [
        (np.uint16, 0, 255),
        (np.uint16, 255, 255),
        (np.uint16, 256, 1023),
        (np.uint16, 1023, 1023),
        (np.uint16, 1024, 4095),
        (np.uint16, 4096, 65535),
        (np.int32, 70000, 2**31 - 1),
        (np.float32, 0.5, 1),
        (np.float32, 1, 1),
        (np.float32, 2, 255),
        (np.float32, 999, 65535),
        (np.float32, 1e6, 1e6),
    ],
)
def test_the_white_level_is_the_least_usual_value_that_none_exceeds(tmp_path, kind, largest, white):
    level = WhiteLevel()
    decode.open_image(save_high_bit_depth(tmp_path, "a.tiff", 0, largest, kind=kind), level)
    decode.open_image(save_high_bit_depth(tmp_path, "b.tiff", largest / 2, 0, kind=kind), level)
    assert level == {} and level.settle() and not level.settle()
    assert level == {"float" if kind == np.float32 else "integer": white}


@pytest.mark.parametrize(
    "white",
    [3, [], {"integer": 0}, {"integer": "9"}, {"integer": math.nan}, {"grey": 9}, {"float": True}],
)
def test_a_white_level_that_is_none_is_refused(white):
    with pytest.raises(ValueError, match="^white: expected"):
        check_white_level(white)
    assert check_white_level(None) == {}
    assert check_white_level({"integer": 4095, "float": 1.0}) == {"integer": 4095, "float": 1}


# ---- what is read, and what is refused before it is


def test_file_objects_are_read_as_files_are(tmp_path):
    flag().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with open(tmp_path / "a.png", "rb") as file:
        assert_shows(decode.open_image(file), RED, BLUE)
    assert_shows(decode.open_image(io.BytesIO(content)), RED, BLUE)
    with pytest.raises(ValueError, match="image file object: expected a readable image"):
        decode.open_image(io.BytesIO(content[:30]))
    with pytest.raises(ValueError, match="image file object: expected a readable image"):
        decode.open_image(io.StringIO("words"))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", os.devnull):
        with pytest.raises(FileNotFoundError, match="got a pipe or device"):
            decode.open_image(path)


def test_avif_is_read_where_this_pillow_can(tmp_path):
    if not decode.formats()[len(decode.FORMATS) :]:
        pytest.skip("this Pillow does not read AVIF")
    assert_shows(saved(tmp_path, flag(), "a.avif", quality=95), RED, BLUE, within=8)


def test_too_little_memory_is_one_line(tmp_path, monkeypatch):
    def lacking(*arguments):
        raise MemoryError

    flag().save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lacking)
    with pytest.raises(ValueError, match="a.png: out of memory"):
        decode.open_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content",
    [
        png_of((b"zTXt", b"k\0\0" + zlib.compress(bytes(30_000_000)))),
        png_of((b"iCCP", b"k\0\0" + zlib.compress(bytes(30_000_000)))),
        png_of()[:33] + png_of((b"abCd", b""))[33:45] * 90_000,
        b"\xff\xd8" + b"\xff\xe5\0\x02" * 300_000,
        b"GIF89a" + bytes(7) + b"\x21\xfe" + b"\1x" * 300_000,  # a comment of single letters
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(9),
    ],
    ids=["text", "profile", "chunks", "markers", "comment", "canvas"],
)
def test_hostile_headers_end_in_one_line(content):
    with pytest.raises(ValueError, match="^image file object: expected") as error:
        decode.open_image(io.BytesIO(content))
    assert len(str(error.value)) <= 500 and "\n" not in str(error.value)
