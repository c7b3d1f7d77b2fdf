"""Tokens as people read them, and as any terminal may print them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lrpfunc.errors import InputError

BREAK = "⏎"  # the sign for a line break
EMPTY = "∅"  # and for a token of no letters
SPECIAL = re.compile(r"<[^<>\s]+>|\[\w+\]")  # <s>, <|endoftext|>, [CLS]
CONTINUED = re.compile(r"##[^#]")  # of a WordPiece; others have "##" for headings
# What ends a sentence, with the quotes and brackets that close behind it.
STOP = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|⏎|$)|[。！？｡]+[」』”’）]*|[⏎\n]+|[؟۔।]+")  # noqa: RUF001
JOINERS = "\u200c\u200d"  # parts of words in Persian, Hindi and others, and harmless


def words(tokens: Sequence[str]) -> list[str]:
    """The pieces of a tokenizer as people read them: joined, they are the text.

    A leading space starts a word: it stands for byte-level BPE's "Ġ" and SentencePiece's "▁"; WordPiece's "##" marks
    the others instead. A line break becomes "⏎". Pieces of byte-level BPE are decoded from their bytes where these are
    whole letters, else kept, as special tokens are ("<s>", "[CLS]").

    Args:
        tokens: all pieces of a sequence, of which the markers tell what tokenizer it was.
    Errors: `InputError` for what is no sequence of strings, such as token ids.

    >>> from lrpfunc import text
    >>> text.words(["<s>", "The", "Ġkey"]), text.words(["[CLS]", "un", "##lock"])
    (['<s>', 'The', ' key'], ['[CLS]', ' un', 'lock'])
    """
    pieces = check_tokens(tokens)
    plain = [piece for piece in pieces if not SPECIAL.fullmatch(piece)]
    if any("▁" in piece for piece in plain):
        return [_sentence_piece(piece) for piece in pieces]
    # "Ġ" is also a letter, but no continued word begins with it.
    has_bytes = any(piece.startswith(("Ġ", "Ċ")) for piece in plain)
    if not has_bytes and (any(map(CONTINUED.match, plain)) or "[CLS]" in pieces):
        return [_word_piece(piece, first=i == 0) for i, piece in enumerate(pieces)]
    return [_byte_piece(piece) for piece in pieces]


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
    if piece == "<0x0A>":  # SentencePiece's name of a byte that is no piece
        return BREAK
    return piece if SPECIAL.fullmatch(piece) else piece.replace("▁", " ")


def _word_piece(piece: str, first: bool) -> str:
    if SPECIAL.fullmatch(piece):
        return piece
    if CONTINUED.match(piece) or piece == "###":  # a continuing "#"
        return piece[2:]
    return piece if first else f" {piece}"


def _byte_piece(piece: str) -> str:
    if any(letter not in BYTES for letter in piece):
        return piece
    try:
        return bytes(BYTES[letter] for letter in piece).decode().replace("\n", BREAK)
    except UnicodeDecodeError:
        return piece


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

    A line break becomes "⏎", a token of no letters "∅".
    """
    return "".join(map(_visible, token.replace("\r\n", "\n"))) or EMPTY


def _visible(letter: str) -> str:
    if letter == "\n":
        return BREAK
    if letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode()
