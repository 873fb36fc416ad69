"""Make `minidpt/clip/clip_merges.xz`, the merges of CLIP's tokenizer, from OpenAI's list.

The list, `bpe_simple_vocab_16e6.txt.gz`, is part of the package open_clip_torch (MIT licence):

    pip download --no-deps open_clip_torch==3.3.0
    python weights/make_merges.py open_clip_torch-3.3.0-py3-none-any.whl

A line of the list is a merge: the two tokens that it joins, spelled in the 256 characters that
stand for the bytes. CLIP uses the first 48894 merges of some 262,000. The data file keeps their
order, and of each the ids of its two tokens as unsigned 16-bit little-endian integers, by xz.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import struct
import sys
import zipfile
import zlib
from pathlib import Path

LIST = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894
UNREADABLE = (KeyError, EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error)
OUTPUT = Path(__file__).parent.parent / "minidpt/clip/clip_merges.xz"
# Records of four bytes: what a byte is like depends on its position modulo 4 (lp = 2).
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 2, "pb": 0}]


def read_merges(source: Path) -> list[list[str]]:
    """The merges that CLIP uses, two spelled tokens each, from the list or a wheel that has it.

    Raises FileNotFoundError if there is no such file, and ValueError if it is not the list.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no file {source}: see the top of this script for where to get it")
    try:
        compressed = source.read_bytes()
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel:
                compressed = wheel.read(f"open_clip/{LIST}")
        lines = gzip.decompress(compressed).decode("utf-8").split("\n")
    except (*UNREADABLE, ValueError) as error:
        message = f"{source} is not the list {LIST}, nor open_clip_torch's wheel: {error}"
        raise ValueError(message) from error
    merges = [line.split() for line in lines[1 : 1 + MERGES]]  # the first line is a title
    if len(merges) != MERGES or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{source} is not the list {LIST}: {MERGES} lines of two tokens wanted")
    return merges


def byte_characters() -> list[str]:
    """The characters that stand for the bytes in the list, in the order of their ids.

    A byte that Latin-1 prints is its own character; the n-th of the others is character 256 + n.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printed, *range(256, 512 - len(printed))]]


def pack(merges: list[list[str]]) -> bytes:
    """The data file's content: the ids of the two tokens of each merge, compressed."""
    characters = byte_characters()
    tokens = characters + [character + "</w>" for character in characters]
    tokens += [left + right for left, right in merges]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise ValueError("two merges make the same token, ids would be ambiguous")
    pairs = b"".join(struct.pack("<HH", ids[left], ids[right]) for left, right in merges)
    return lzma.compress(pairs, check=lzma.CHECK_CRC32, filters=FILTERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help=f"the wheel of open_clip_torch, or {LIST}")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    try:
        arguments.output.write_bytes(pack(read_merges(arguments.source)))
    except (OSError, ValueError) as error:
        print(f"make_merges.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.output}: {MERGES} merges, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
