"""Fonts of this machine that have the letters of a text."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lrpfunc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry
    from PIL.ImageFont import FreeTypeFont

FONT = "DejaVu Sans"  # it comes with matplotlib
EVERYTHING = "Last Resort"  # matplotlib's, of a box for each letter
MOST = 12  # letters that a note lists


class Fonts:
    """A font and, for words with letters that it lacks, others of this machine that have them, all of one size.

    `lacking`: the letters so far that no font has all of a word with, which are drawn as boxes.

    Errors: `InputError` for a font that there is not.
    """

    def __init__(self, font: str | Path, size: int):
        if size < 1:
            raise InputError(f"a font needs a size of one pixel at least, but got {size!r}.")
        self.path, self.size = found(font), size
        self.lacking: dict[str, None] = {}
        self._loaded: dict[str, FreeTypeFont] = {}

    def of(self, word: str) -> FreeTypeFont:
        """The font that has most letters of a word; the first one, if no other has more."""
        path, lacking = covering(frozenset(word), self.path)
        self.lacking |= dict.fromkeys(letter for letter in word if letter in lacking)
        return self.loaded(path)

    def loaded(self, path: str) -> FreeTypeFont:
        """A font in the size of these."""
        from PIL import ImageFont

        if path not in self._loaded:
            self._loaded[path] = ImageFont.truetype(path, self.size)
        return self._loaded[path]


def note(lacking: Collection[str]) -> str:
    """What is to be said of letters that are drawn as boxes; nothing if there are none."""
    if not lacking:
        return ""
    named = " ".join(f"U+{ord(letter):04X}" for letter in sorted(lacking)[:MOST])
    more = f" and {len(lacking) - MOST} more" if len(lacking) > MOST else ""
    return f"Boxes are letters that no font here has ({named}{more}): install one that has them, such as Noto's."


def found(font: str | Path) -> str:
    """The file of a font: itself, or that of a family. Errors: `InputError`."""
    from matplotlib import font_manager

    try:
        path = str(font if Path(font).is_file() else font_manager.findfont(str(font), fallback_to_default=False))
    except ValueError:
        path = ""
    if not _is_scalable(path):
        raise InputError(f"there is no font {str(font)!r}: name a family that matplotlib finds, or a file.")
    return path


@cache
def covering(letters: frozenset[str], first: str) -> tuple[str, frozenset[str]]:
    """The font that has most of some letters, one before others that have as many, and the letters that it lacks."""
    drawn = frozenset(filter(_is_drawn, letters))
    best, lacking = first, drawn - letters_of(first)
    if lacking:
        for path in installed():
            left = drawn - letters_of(path)
            if len(left) < len(lacking) and _is_scalable(path):
                best, lacking = path, left
            if not lacking:
                break
    return best, lacking


def families(words: Collection[str]) -> tuple[list[str], frozenset[str]]:
    """Families of fonts that matplotlib draws some words by, and the letters that none of them has."""
    first = found(FONT)
    chosen, lacking = [FONT], frozenset(letter for word in words for letter in word if _is_drawn(letter))
    lacking -= letters_of(first)
    while lacking:
        path, left = covering(lacking, first)
        if path == first:
            break
        chosen.append(next(entry.name for entry in _entries() if entry.fname == path))
        lacking = left
    return chosen, lacking


def _is_drawn(letter: str) -> bool:
    """Whether a letter is seen, other than what joins and chooses others."""
    return unicodedata.category(letter) not in ("Cf", "Cs", "Zs") and not "\ufe00" <= letter <= "\ufe0f"


@cache
def letters_of(path: str) -> frozenset[str]:
    """The letters that a font has."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (RuntimeError, OSError):  # no font that FreeType opens
        return frozenset()


@cache
def _is_scalable(path: str) -> bool:
    """Whether a font can be drawn in any size: some of emoji hold pictures of one."""
    from PIL import ImageFont

    try:
        ImageFont.truetype(path, 18)
    except (OSError, ValueError):
        return False
    return True


@cache
def installed() -> tuple[str, ...]:
    """The fonts that matplotlib finds on this machine, upright and regular ones without serifs first."""
    return tuple(dict.fromkeys(entry.fname for entry in _entries()))


def _entries() -> list[FontEntry]:
    from matplotlib import font_manager

    def order(entry: FontEntry) -> tuple:
        weight = entry.weight if isinstance(entry.weight, int) else 400
        return entry.style != "normal", abs(weight - 400), "Sans" not in entry.name, entry.name, entry.fname

    entries = [entry for entry in font_manager.fontManager.ttflist if not entry.name.startswith(EVERYTHING)]
    return sorted(entries, key=order)
