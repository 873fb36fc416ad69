"""CLIP's byte-pair tokenizer: any Unicode text to the ids that OpenAI's CLIP was trained with.

A text is cleaned and cut into words, each word is a row of UTF-8 bytes, and the learned merges join
neighbours until none applies (Sennrich et al., 2016; on bytes: Radford et al., 2019). The ids are

        0 ..   255   one byte inside a word
      256 ..   511   one byte that ends a word (printed as `</w>` in OpenAI's files)
      512 .. 49405   merge number 0 .. 48893, earliest learned first
    49406, 49407     `<|startoftext|>`, `<|endoftext|>`

so the id of a merged token is also its rank: of two merges, the one with the smaller id goes first.
`clip_merges.xz` beside this file holds the two ids that each merge joins; it is made by
`weights/make_merges.py`, and read when the first text is tokenized.
"""

import functools
import heapq
import lzma
import pkgutil
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ..support.files import short_repr

SOT_TOKEN = 49406
EOT_TOKEN = 49407
SPECIAL_TOKENS = {"<|startoftext|>": SOT_TOKEN, "<|endoftext|>": EOT_TOKEN}

# A word: a special token, a contraction's end, a run of letters, one digit, or a run of the rest.
WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
CACHED_WORDS = 2**15
CACHED_WORD_LENGTH = 64  # in characters; with longer words the cache would have no bound in bytes


class Vocabulary(NamedTuple):
    """Tables between bytes, merges and ids."""

    byte_ids: list[int]  # byte -> its id inside a word; 256 more at the end of a word
    merges: dict[tuple[int, int], int]  # ids of two neighbours -> id of the token that joins them
    spellings: list[bytes]  # id -> its bytes, with a space where a word ends


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> torch.LongTensor:
    """Tokenize one text or several, a row each: start, text, end, zeros; (n, context_length).

    A text with more tokens than `context_length`, counting start and end, raises ValueError; with
    `truncate=True` its row keeps the first ones and ends with EOT_TOKEN. What is no text raises
    TypeError.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = [[SOT_TOKEN, *encode(text), EOT_TOKEN] for text in texts]
    tokens = torch.zeros(len(rows), context_length, dtype=torch.long)
    for row, (text, ids) in enumerate(zip(texts, rows)):
        if len(ids) > context_length:
            if not truncate:
                got = f"text {short_repr(text)} has {len(ids)} tokens with start and end"
                raise ValueError(f"{got}, expected at most {context_length}: pass truncate=True")
            ids = ids[: context_length - 1] + [EOT_TOKEN]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def encode(text: str) -> list[int]:
    """Encode a text to token ids, without start and end.

    The special tokens' names in a text become their ids, as in OpenAI's tokenizer: for CLIP, such a
    text ends at its first `<|endoftext|>`. Raises TypeError if `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text as a string, got {short_repr(text)}")
    import regex  # here, as it takes longer to import than all of this package

    ids = []
    for match in regex.finditer(WORD, _clean(text), regex.IGNORECASE):
        word = match.group()
        ids.extend(_cached_bpe(word) if len(word) <= CACHED_WORD_LENGTH else _bpe(word))
    return ids


def decode(ids: Iterable[int]) -> str:
    """Return the text of token ids, lower case, with a space after every word, as OpenAI's does.

    Bytes that are not UTF-8, as in a text cut inside a character, become U+FFFD.
    """
    spellings = _vocabulary().spellings
    return b"".join(spellings[i] for i in ids).decode("utf-8", errors="replace")


def _clean(text: str) -> str:
    """Clean a text as for CLIP's training: repaired, entities resolved twice, lower case.

    ftfy undoes mojibake, typographic quotes and full-width letters. Numeric references are cut to
    eight digits without leading zeros first, which changes no result (all longer ones are U+FFFD):
    Python reads no integer of more than 4300 digits, so that OpenAI's tokenizer raises there.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.lower()  # there is nothing to repair, and ftfy takes long to say so
    import html

    import ftfy
    import regex

    text = ftfy.fix_text(text)
    for _ in range(2):
        text = html.unescape(regex.sub(r"&#0*([0-9]{1,8})[0-9]*", r"&#\1", text))
    return text.lower()


@functools.cache
def _vocabulary() -> Vocabulary:
    """Read the vocabulary from the data file, once (about 0.1 s).

    The 256 bytes are numbered as in GPT-2: first those that Latin-1 prints, then the others.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    byte_order = printed + sorted(set(range(256)) - set(printed))
    data = lzma.decompress(pkgutil.get_data(__package__, "clip_merges.xz"))
    pairs = list(struct.iter_unpack("<HH", data))

    spellings = [bytes([byte]) for byte in byte_order]
    spellings += [byte + b" " for byte in spellings]
    for left, right in pairs:
        spellings.append(spellings[left] + spellings[right])
    spellings += [name.encode() for name in SPECIAL_TOKENS]
    return Vocabulary(
        byte_ids=[byte_order.index(byte) for byte in range(256)],
        merges={pair: merged for merged, pair in enumerate(pairs, start=512)},
        spellings=spellings,
    )


def _bpe(word: str) -> tuple[int, ...]:
    """Encode one word: again and again, the earliest learned merge joins its pairs, left to right.

    Equals algorithm 1 of Sennrich et al. (2016), which takes quadratic time. Here the word is a
    linked list, and a heap finds the next merge at its leftmost place, in n log n: a merge is
    learned after both of its parts, so a pair that involves a new token always ranks after it.
    """
    if word in SPECIAL_TOKENS:
        return (SPECIAL_TOKENS[word],)
    byte_ids, merges, _ = _vocabulary()
    symbols: list[int | None] = [byte_ids[byte] for byte in word.encode("utf-8")]
    symbols[-1] += 256
    symbols.append(None)  # closes the list to a ring: next to the last and the first, in no merge
    length = len(symbols)
    previous, following = list(range(-1, length - 1)), [*range(1, length), 0]
    waiting: list[tuple[int, int]] = []  # heap of merged ids and positions of their left parts

    def push_pair(left: int) -> None:
        merged = merges.get((symbols[left], symbols[following[left]]))
        if merged is not None:
            heapq.heappush(waiting, (merged, left))

    for left in range(length):
        push_pair(left)
    while waiting:
        merged, left = heapq.heappop(waiting)
        right = following[left]
        if merges.get((symbols[left], symbols[right])) == merged:  # else one was taken since
            symbols[left], symbols[right] = merged, None
            following[left] = following[right]
            previous[following[left]] = left
            push_pair(previous[left])
            push_pair(left)
    return tuple(symbol for symbol in symbols if symbol is not None)


_cached_bpe = functools.lru_cache(maxsize=CACHED_WORDS)(_bpe)
