"""Tokens as people read them, and as any terminal may print them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from lrpfunc.errors import InputError

BREAK = "⏎"  # the sign for a line break
EMPTY = "∅"  # and for a token of no letters
SPACE = "␣"  # a token of spaces
SPECIAL = re.compile(r"<[^<>\s]+>|\[\w+\]")  # <s>, <|endoftext|>, [CLS]
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # SentencePiece's name of a byte that is no piece
CONTINUED = re.compile(r"##[^#]")  # of a WordPiece; others have "##" for headings
# What ends a sentence, with the quotes and brackets that close behind it.
STOP = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|⏎|$)|[。！？｡]+[」』”’）]*|[⏎\n]+|[؟۔।]+")  # noqa: RUF001
JOINERS = "\u200c\u200d"  # parts of words in Persian, Hindi and others, and harmless
UNSEEN = JOINERS + "\ufe0e\ufe0f"  # and what chooses between forms of a letter


def words(tokens: Sequence[str]) -> list[str]:
    """The pieces of a tokenizer as people read them: joined, they are the text.

    A leading space starts a word: it stands for byte-level BPE's "Ġ" and SentencePiece's "▁"; WordPiece's "##" marks
    the others instead. A line break becomes "⏎". Pieces of bytes are decoded; a letter whose bytes are in several of
    them is in the first, and the others are empty. Bytes that make no letter are kept, as special tokens are ("<s>").

    Args:
        tokens: all pieces of a sequence, of which the markers tell what tokenizer it was.
    Errors: `InputError` for what is no sequence of strings, such as token ids.

    >>> from lrpfunc import text
    >>> text.words(["<s>", "The", "Ġkey"]), text.words(["[CLS]", "un", "##lock"])
    (['<s>', 'The', ' key'], ['[CLS]', ' un', 'lock'])
    >>> text.words(["▁", "<0xE2>", "<0x82>", "<0xAC>", "5"])
    [' ', '€', '', '', '5']
    """
    pieces = check_tokens(tokens)
    plain = [piece for piece in pieces if not SPECIAL.fullmatch(piece)]
    if any("▁" in piece for piece in plain) or any(map(BYTE.fullmatch, pieces)):
        read = _joined([bytes([int(piece[3:5], 16)]) if BYTE.fullmatch(piece) else None for piece in pieces])
        return [_sentence_piece(piece) if word is None else word for piece, word in zip(pieces, read, strict=True)]
    # "Ġ" is also a letter, but no continued word begins with it.
    has_bytes = any(piece.startswith(("Ġ", "Ċ")) for piece in plain)
    if not has_bytes and (any(map(CONTINUED.match, plain)) or "[CLS]" in pieces):
        return [_word_piece(piece, first=i == 0) for i, piece in enumerate(pieces)]
    read = _joined([_bytes(piece) for piece in pieces])
    return [piece if word is None else word for piece, word in zip(pieces, read, strict=True)]


def sentences(words: Sequence[str]) -> dict[str, range]:
    """The sentences of a text as spans of its words, by what they say: {"The key is red.": range(0, 5), ...}.

    A sentence ends with a line break, a full stop as in Chinese, or one with a space behind it, also where the stop is
    that of an abbreviation. A word belongs to where its first letter is. What says the same again has its number behind
    it.

    Args:
        words: the words of all tokens, as `text.words` gives them: joined, they are the text.
    Errors: `InputError` for what is no sequence of strings.

    >>> from lrpfunc import text
    >>> text.sentences(["The", " key", ".", " It", " is", " 1", ".", "5", " cm", "."])
    {'The key.': range(0, 3), 'It is 1.5 cm.': range(3, 10)}
    """
    pieces = check_tokens(words)
    whole = "".join(pieces)
    ends = [found.end() for found in STOP.finditer(whole)]
    found: dict[str, range] = {}
    start = at = 0
    for number, piece in enumerate(pieces):
        letter = at + len(piece) - len(piece.lstrip())
        if ends and letter >= ends[0] and piece.strip():
            _add(found, pieces, start, number)
            start, ends = number, [end for end in ends if end > letter]
        at += len(piece)
    _add(found, pieces, start, len(pieces))
    return found


def _add(found: dict[str, range], pieces: Sequence[str], start: int, stop: int) -> None:
    said = "".join(pieces[start:stop]).strip().rstrip(BREAK)
    if stop > start:
        count = sum(name == said or name.startswith(f"{said} (") for name in found)
        found[f"{said} ({count + 1})" if said in found else said] = range(start, stop)


def check_tokens(tokens: Sequence[str]) -> list[str]:
    """The tokens as a list. Errors: `InputError` if they are no strings."""
    if isinstance(tokens, str):
        raise InputError(f"tokens must be a sequence of strings, but are one: {tokens!r}.")
    listed = list(tokens)
    for i, token in enumerate(listed):
        if not isinstance(token, str):
            raise InputError(
                f"tokens must be strings, as `tokenizer.convert_ids_to_tokens` gives them, but token {i} is {token!r}."
            )
    return listed


def _sentence_piece(piece: str) -> str:
    return piece if SPECIAL.fullmatch(piece) else piece.replace("▁", " ")


def _word_piece(piece: str, first: bool) -> str:
    if SPECIAL.fullmatch(piece):
        return piece
    if CONTINUED.match(piece) or piece == "###":  # a continuing "#"
        return piece[2:]
    return piece if first else f" {piece}"


def _bytes(piece: str) -> bytes | None:
    """The bytes that a piece of byte-level BPE stands for, if it is one."""
    return bytes(BYTES[letter] for letter in piece) if all(letter in BYTES for letter in piece) else None


def _joined(pieces: Sequence[bytes | None]) -> list[str | None]:
    """What pieces of bytes say: letters, each where its first byte is; None for those with bytes that make none."""
    found: list[str | None] = []
    for _, run in groupby(pieces, lambda piece: piece is None):
        found += _read(list(run))
    return found


def _read(run: Sequence[bytes | None]) -> list[str | None]:
    """Of a run of bytes, or of none."""
    pieces = [piece for piece in run if piece is not None]
    owners = [number for number, piece in enumerate(pieces) for _ in piece]
    whole, at = b"".join(pieces), 0
    found: list[str | None] = [""] * len(pieces) or [None] * len(run)
    while at < len(whole):
        length = next((n for n in range(1, 5) if _is_letter(whole[at : at + n])), None)
        owner = owners[at]
        before = found[owner]
        found[owner] = None if length is None or before is None else before + whole[at : at + length].decode()
        at += length or 1
    return [word if word is None else word.replace("\n", BREAK) for word in found]


def _is_letter(letter: bytes) -> bool:
    try:
        return len(letter.decode()) == 1
    except UnicodeDecodeError:
        return False


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: itself where one can be seen, else the next of those from 256 on.

    Source: Radford et al. 2019, bytes_to_unicode in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(unseen)}


BYTES = _bytes_of_letters()


def visible(token: str) -> str:
    """A token on one line that can do nothing to a terminal: control characters and the like as escapes.

    A line break becomes "⏎", a token of nothing that is seen "∅".
    """
    shown = "".join(map(_visible, token.replace("\r\n", "\n")))
    return shown if shown.strip(UNSEEN) else EMPTY


def heading(token: str, longest: int | None = None) -> str:
    """A token or text by itself: without the space before it, or as "␣" if it is nothing else; not too long."""
    shown = visible(token.strip() or SPACE * bool(token))
    return shown if longest is None or len(shown) <= longest else f"{shown[: longest - 1]}…"


def _visible(letter: str) -> str:
    if letter == "\n":
        return BREAK
    if letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode()
