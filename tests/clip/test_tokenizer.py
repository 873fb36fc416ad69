"""The tokenizer against stored ids of OpenAI's, a naive byte-pair encoder, and golden tokens."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import lzma
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ftfy
import pytest
import torch

from minidpt.clip import tokenizer
from minidpt.clip.tokenizer import EOT_TOKEN, SOT_TOKEN, decode, encode, tokenize

HERE = Path(__file__).parents[1]
DATA = Path(tokenizer.__file__).with_name("clip_merges.xz")
# Of lines 2 to 48895 of OpenAI's bpe_simple_vocab_16e6.txt, joined by newlines.
PUBLISHED_MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
# From open_clip's copy of OpenAI's tokenizer, with OpenAI's names of the special tokens.
CASES = json.loads((HERE / "helpers/tokenizer_cases.json").read_text("utf-8"))["cases"]
DOG = [320, 1125, 539, 320, 1929, 269]  # "a photo of a dog.", also in the golden tokens


def byte_order() -> list[int]:
    """Bytes in the order of their ids: first those that Latin-1 prints (0xAD is invisible)."""
    return sorted(range(256), key=lambda b: (b <= 0x20 or 0x7F <= b <= 0xA0 or b == 0xAD, b))


def stored_pairs() -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<HH", lzma.decompress(DATA.read_bytes())))


@pytest.fixture(scope="module")
def published_merges() -> list[str]:
    """The merges as OpenAI's file spells them: a visible character for each byte, `</w>`."""
    printed = [b for b in byte_order() if chr(b).isprintable() and b != 0x20]
    characters = [chr(b) for b in printed] + [chr(256 + n) for n in range(256 - len(printed))]
    tokens = characters + [c + "</w>" for c in characters]
    for left, right in stored_pairs():
        tokens.append(tokens[left] + tokens[right])
    return [f"{tokens[left]} {tokens[right]}" for left, right in stored_pairs()]


@pytest.fixture(scope="module")
def naive_bpe():
    """Sennrich et al. (2016), algorithm 1, on byte strings: the best of all pairs, everywhere."""
    spellings = [bytes([b]) for b in byte_order()]
    spellings += [b + b"</w>" for b in spellings]
    world = {}
    for rank, (left, right) in enumerate(stored_pairs()):
        world[spellings[left], spellings[right]] = rank
        spellings.append(spellings[left] + spellings[right])
    ids = {spelling: i for i, spelling in enumerate(spellings)}

    def bpe(word: str) -> list[int]:
        parts = [bytes([b]) for b in word.encode()]
        parts[-1] += b"</w>"
        while known := [pair for pair in zip(parts, parts[1:]) if pair in world]:
            best, merged = min(known, key=world.__getitem__), parts[:1]
            for piece in parts[1:]:
                if (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            parts = merged
        return [ids[symbol] for symbol in parts]

    return bpe


@pytest.fixture
def count_lookups(monkeypatch):
    """A function: how often encoding a text looks up a pair in the table of merges."""

    class CountingMerges(dict):
        lookups = 0

        def get(self, pair):
            self.lookups += 1
            return super().get(pair)

    merges = CountingMerges(tokenizer._vocabulary().merges)
    vocabulary = tokenizer._vocabulary()._replace(merges=merges)
    monkeypatch.setattr(tokenizer, "_vocabulary", lambda: vocabulary)

    def count(text: str) -> int:
        before = merges.lookups
        encode(text)
        return merges.lookups - before

    return count


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_ids_are_those_of_openai_on_hard_texts(case):
    assert encode(case["text"]) == case["ids"]


def test_stored_merges_are_the_published_ones(published_merges):
    assert len(published_merges) == 48894
    digest = hashlib.sha256("\n".join(published_merges).encode()).hexdigest()
    assert digest == PUBLISHED_MERGES_SHA256


def make_merges(source: Path, output: Path) -> subprocess.CompletedProcess:
    script = [sys.executable, HERE.parent / "weights/make_merges.py", source, "--output", output]
    return subprocess.run(script, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["bpe_simple_vocab_16e6.txt.gz", "open_clip_torch.whl"])
def test_script_makes_the_stored_data_file(name, published_merges, tmp_path):
    source, output = tmp_path / name, tmp_path / "made.xz"
    lines = ["a title", *published_merges, "an unused</w>", ""]
    content = gzip.compress("\n".join(lines).encode(), compresslevel=1)
    if source.suffix == ".whl":
        with zipfile.ZipFile(source, "w") as wheel:
            wheel.writestr("open_clip/bpe_simple_vocab_16e6.txt.gz", content)
    else:
        source.write_bytes(content)
    make_merges(source, output).check_returncode()
    # Not the compressed bytes: another version of liblzma may choose others.
    assert lzma.decompress(output.read_bytes()) == lzma.decompress(DATA.read_bytes())


@pytest.mark.parametrize(
    "name, content",
    [
        ("missing.gz", None),
        ("list.gz", b"not gzip"),
        ("list.gz", gzip.compress(b"title\na b", mtime=0)),
        ("list.gz", gzip.compress(b"title\n" + b"a b c\n" * 48894, mtime=0)),
        ("list.gz", gzip.compress(b"title\na b\n", mtime=0)[:-4]),
        ("package.whl", b"not zip"),
    ],
)
def test_script_refuses_a_wrong_source_in_one_line(name, content, tmp_path):
    source, output = tmp_path / name, tmp_path / "made.xz"
    if content is not None:
        source.write_bytes(content)
    result = make_merges(source, output)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and str(source) in result.stderr
    assert content is not None or "where to get it" in result.stderr
    assert not output.exists()


def test_every_merge_is_learned_after_its_parts():
    """Why the order of merges in `_bpe` is the naive loop's; and no token is made twice."""
    assert all(left < merged > right for merged, (left, right) in enumerate(stored_pairs(), 512))
    spellings = tokenizer._vocabulary().spellings
    assert len(set(spellings)) == len(spellings) == 49408


@pytest.mark.parametrize("alphabet", ["a", "ab", "lol", "etaoinshrdlu", "éü狗д😀", "!?.-"])
def test_words_merge_as_in_the_naive_loop(naive_bpe, alphabet):
    generator = random.Random(0)
    for length in [1, 2, 3, 5, 7, 11, 13, 17, 23, 64, 65, 67, 211, 499]:
        for _ in range(7):
            word = "".join(generator.choices(alphabet, k=length))
            assert list(tokenizer._bpe(word)) == naive_bpe(word), word
            if word.isalpha():
                assert encode(word) == naive_bpe(word), word


@pytest.mark.parametrize("letters", ["a", "ab", "etaoinshrdlucm"])
def test_one_giant_word_takes_linear_work(count_lookups, letters):
    """At most n pairs at first, n merges of two new pairs each, one check a noted pair: 6n.

    The naive loop looks at all n pairs for each of the word's some hundred different merges.
    """
    n = 5000
    word = "".join(random.Random(0).choices(letters, k=n))
    assert n <= count_lookups(word) <= 6 * n


def test_a_giant_word_does_not_grow_the_cache():
    before = tokenizer._cached_bpe.cache_info()
    encode("a" * (tokenizer.CACHED_WORD_LENGTH + 1))
    assert tokenizer._cached_bpe.cache_info() == before
    assert before.maxsize == tokenizer.CACHED_WORDS


def test_a_word_seen_before_comes_from_the_cache(count_lookups):
    encode("seldomseenword")
    assert count_lookups("seldomseenword SELDOMSEENWORD") == 0


def test_a_numeric_entity_of_any_length_is_read():
    """OpenAI's tokenizer raises: Python refuses to read an integer of more than 4300 digits."""
    assert encode(f"&#{'1' * 5000};") == encode("\ufffd")
    assert encode(f"&#{'0' * 5000}100;og") == encode("dog")
    assert encode("&#00100;og &#100;og &#1001;") == encode("dog dog ϩ")


def test_one_text_is_one_padded_row_of_integers():
    tokens = tokenize("a photo of a dog.")
    assert tokens.dtype == torch.long
    assert tokens.tolist() == [[SOT_TOKEN, *DOG, EOT_TOKEN] + [0] * 69]
    assert tokenize(["a photo of a dog."] * 3).shape == (3, 77)
    assert tokenize([]).shape == (0, 77)
    tokens = tokenize("a photo of a dog.", context_length=8)
    assert tokens.tolist() == [[SOT_TOKEN, *DOG, EOT_TOKEN]]


def test_truncation_keeps_the_first_tokens_and_ends_with_end():
    assert tokenize("a photo of a dog.", 5, truncate=True).tolist() == [
        [SOT_TOKEN, *DOG[:3], EOT_TOKEN]
    ]
    rows = tokenize(["dog " * 75, "dog " * 76], truncate=True).tolist()
    assert rows[0] == rows[1] == [SOT_TOKEN] + [1929] * 75 + [EOT_TOKEN]


@pytest.mark.parametrize(
    ("text", "most", "quoted", "count"),
    [
        ("a photo of a dog.", 7, "'a photo of a dog.'", 8),
        ("0123456789" * 1000, 77, "'0123456789", 10002),  # only its start
    ],
)
def test_a_too_long_text_is_refused_with_count_limit_and_fix(text, most, quoted, count):
    message = f"text {quoted}.* has {count} tokens .* at most {most}: pass truncate=True$"
    with pytest.raises(ValueError, match=message) as caught:
        tokenize(["a dog", text], context_length=most)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("wrong", [None, 3, b"a dog", ["a dog", 3], [b"a dog"], [["a dog"]]])
def test_anything_but_text_is_refused(wrong):
    with pytest.raises(TypeError, match="expected .*string|not iterable"):
        tokenize(wrong)


def test_decode_gives_back_the_words():
    ids = encode("A photo of  a &amp; DOG, it's 42 狗!")
    assert decode(ids) == "a photo of a & dog , it 's 4 2 狗 ! "
    assert decode(tokenize("a dog", context_length=4)[0]) == "<|startoftext|>a dog <|endoftext|>"
    assert decode([]) == "" and decode(encode("狗")[:1]) == "\ufffd"  # a cut character


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_decoded_text_has_the_same_ids(case):
    assert encode(decode(case["ids"])) == case["ids"]


def test_plain_ascii_text_is_cleaned_as_by_ftfy_which_is_not_asked():
    draw, letters = random.Random(0), [chr(code) for code in range(32, 127)]
    for _ in range(2000):
        text = "".join(draw.choices(letters, k=draw.randint(0, 30)))
        repaired = html.unescape(html.unescape(ftfy.fix_text(text))).lower()
        assert tokenizer._clean(text) == repaired, text
