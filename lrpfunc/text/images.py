"""Relevance of tokens as an image: words on their colours, in lines, with a legend."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lrpfunc.errors import InputError
from lrpfunc.heatmaps import COLORS
from lrpfunc.text.fonts import FONT, Fonts, note
from lrpfunc.text.rows import Mask, Relevance, Row, Scale, Tokens, ends, headings, paints, rows
from lrpfunc.text.tokens import BREAK, visible

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

INK, FAINT, EDGE = "#1b1f24", "#5b6470", "#d5d9df"


def image(
    tokens: Tokens,
    relevance: Relevance,
    mask: Mask = None,
    titles: Sequence[str] = (),
    title: str = "",
    colors: str | Colormap = COLORS,
    limit: float | None = None,
    scale: Scale = "all",
    width: int = 800,
    size: int = 18,
    font: str | Path = FONT,
) -> Image:
    """An RGB image of tokens on the colours of their relevance, in lines, with a legend.

    Args:
        tokens: the strings of one sequence (length,), or a list of several.
        relevance: (length,), or of several (batch, length) or one for each, in any units.
        mask: shaped as the relevance, zero at what to leave out, as padding.
        titles: stand above the sequences, one each.
        title: stands above all.
        colors: see `heatmaps.colormap`.
        limit: the end m of the colours, in units of the relevance; the largest magnitude, unless given.
        scale: "all" for one scale, "each" for one per sequence.
        width: of the image in pixels, into which lines fit.
        size: the height of the font in pixels.
        font: a family that matplotlib finds, or a file. Words with letters that it lacks are drawn by another font of
            this machine; letters that none has are boxes, of which a note says so.
    Errors: those of `text.render`; `InputError` for a font that cannot be found, and for a width or size too small.

    >>> import lrpfunc, torch
    >>> from lrpfunc import text
    >>> text.image(["The", " key"], torch.tensor([-0.5, 1.0]), width=300).width
    300
    """
    (picture,) = pages(tokens, relevance, mask, titles, title, colors, limit, scale, width, size, font)
    return picture


def pages(
    tokens: Tokens,
    relevance: Relevance,
    mask: Mask = None,
    titles: Sequence[str] = (),
    title: str = "",
    colors: str | Colormap = COLORS,
    limit: float | None = None,
    scale: Scale = "all",
    width: int = 800,
    size: int = 18,
    font: str | Path = FONT,
    lines: int | None = None,
) -> list[Image]:
    """As `image`, but in several images of so many lines at most, each with the legend; None: all in one."""
    shown = rows(tokens, relevance, mask, titles, limit, scale)
    measures = _Measures(width, size, Fonts(font, size))
    boxes = list(_boxes(shown, visible(title) if title else "", colors, measures))
    return [_page(part, ends(shown), colors, measures) for part in _paged(boxes, lines, measures)]


def _paged(boxes: Sequence[_Box], lines: int | None, measures: _Measures) -> Iterator[list[_Box]]:
    """Boxes page by page, each from the top."""
    height = len(boxes) * measures.step if lines is None else lines * measures.step
    begun: list[_Box] = []
    for box in boxes:
        if begun and box.y - begun[0].y >= height:
            yield _from_top(begun, measures)
            begun = []
        begun.append(box)
    yield _from_top(begun, measures)


def _from_top(boxes: Sequence[_Box], measures: _Measures) -> list[_Box]:
    return [box._replace(y=box.y - boxes[0].y + measures.margin) for box in boxes]


def _page(boxes: Sequence[_Box], words: tuple[str, str], colors: str | Colormap, measures: _Measures) -> Image:
    from PIL import Image, ImageDraw

    bottom = boxes[-1].y + measures.step
    legend = bottom + 7 * measures.size // 2
    said = list(_parts(note(measures.fonts.lacking), measures))
    end = legend + measures.margin + len(said) * measures.step
    picture = Image.new("RGB", (measures.width, end), "white")
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        _draw_box(draw, box, measures)
    _draw_legend(draw, bottom + measures.size // 2, words, colors, measures)
    for number, part in enumerate(said):
        y = legend + measures.margin // 2 + number * measures.step
        _draw_box(draw, _Box(measures.margin, y, part, FAINT), measures)
    return picture


# -- lines ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measures:
    """The measures of an image in pixels; the margin is the font's height."""

    width: int
    size: int
    fonts: Fonts

    @property
    def margin(self) -> int:
        return self.size

    @property
    def step(self) -> int:
        """From line to line."""
        return round(1.75 * self.size)

    @property
    def inner(self) -> int:
        """What a line holds."""
        return self.width - 2 * self.margin

    @property
    def padding(self) -> int:
        """Between a word and the edge of its box."""
        return self.size // 6

    def length(self, word: str) -> int:
        """Of a word's box."""
        return int(np.ceil(self.fonts.of(word).getlength(word))) + 2 * self.padding


class _Box(NamedTuple):
    """A piece of text, by the upper left corner of its box, on a background or on none."""

    x: int
    y: int
    text: str
    ink: str
    background: str | None = None


def _boxes(shown: Sequence[Row], title: str, colors: str | Colormap, measures: _Measures) -> Iterator[_Box]:
    """Every word at its position, line by line."""
    y = measures.margin
    for part in _parts(title, measures):
        yield _Box(measures.margin, y, part, INK)
        y += measures.step
    for row, heading in zip(shown, headings(shown), strict=True):
        for part in _parts(heading, measures):
            yield _Box(measures.margin, y, part, FAINT)
            y += measures.step
        for box in _lines(row, colors, y, measures):
            yield box
            y = box.y
        y += measures.step + measures.size // 2


def _lines(row: Row, colors: str | Colormap, y: int, measures: _Measures) -> Iterator[_Box]:
    """The words of a row in lines, from the right if that is where its script begins."""
    x, from_right = measures.margin, _direction("".join(row.words)) == RIGHT
    line: list[_Box] = []
    for word, paint in zip(row.words, paints(row.values / row.limit, colors), strict=True):
        for part in _parts(word, measures):
            length = measures.length(part)
            if x > measures.margin and x + length > measures.width - measures.margin:
                yield from _ordered(line, from_right, measures)
                x, y, line = measures.margin, y + measures.step, []
            line.append(_Box(x, y, part, paint.ink, paint.background))
            x += length + 1
        if word.endswith(BREAK):
            yield from _ordered(line, from_right, measures)
            x, y, line = measures.margin, y + measures.step, []
    yield from _ordered(line, from_right, measures)


def _ordered(line: Sequence[_Box], from_right: bool, measures: _Measures) -> Iterator[_Box]:
    """The boxes of a line where their scripts have them: words that run from right to left stand so, too."""
    base = RIGHT if from_right else LEFT
    directions = [_direction(box.text) or base for box in line]
    runs = [[box for box, _ in run] for _, run in groupby(zip(line, directions, strict=True), key=lambda pair: pair[1])]
    if from_right:
        runs.reverse()
    heading = [direction for direction, _ in groupby(directions)]
    placed: list[_Box] = []
    for run, direction in zip(runs, reversed(heading) if from_right else heading, strict=True):
        placed += run[::-1] if direction == RIGHT else run
    total = sum(measures.length(box.text) + 1 for box in line) - 1
    x = measures.width - measures.margin - total if from_right else measures.margin
    for box in placed:
        yield box._replace(x=x)
        x += measures.length(box.text) + 1


LEFT, RIGHT = "left", "right"  # where a script begins


def _direction(text: Iterable[str]) -> str | None:
    """Where the script of the first letter begins; None without letters."""
    for letter in text:
        kind = unicodedata.bidirectional(letter)
        if kind in ("L", "R", "AL"):
            return LEFT if kind == "L" else RIGHT
    return None


def _parts(word: str, measures: _Measures) -> Iterator[str]:
    """A word or title cut where it would be longer than a line, behind a space if it has one."""
    while measures.length(word) > measures.inner:
        fitting = _fitting(word, measures)
        cut = word.rfind(" ", 1, fitting) + 1 or fitting
        yield word[:cut]
        word = word[cut:]
    if word:
        yield word


def _fitting(word: str, measures: _Measures) -> int:
    """How many letters of a word fit into a line, by halving."""
    low, high = 0, len(word)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measures.length(word[:middle]) <= measures.inner else (low, middle)
    if low == 0:
        raise InputError(
            f"a width of {measures.width} pixels does not hold one letter of {measures.size}: make it wider."
        )
    return low


# -- drawing ----------------------------------------------------------------------------------------------------------


def _draw_box(draw: ImageDraw, box: _Box, measures: _Measures) -> None:
    if box.background is not None:
        corners = (box.x, box.y + 1, box.x + measures.length(box.text) - 1, box.y + measures.step - 3)
        draw.rounded_rectangle(corners, measures.size // 6, box.background, EDGE)
    start = box.x + (measures.padding if box.background is not None else 0)
    draw.text((start, box.y + measures.step // 2), box.text, box.ink, measures.fonts.of(box.text), anchor="lm")


def _draw_legend(draw: ImageDraw, y: int, words: tuple[str, str], colors: str | Colormap, measures: _Measures) -> None:
    left, length = measures.margin, min(measures.inner, 16 * measures.size)
    height = measures.size * 2 // 3
    for i, paint in enumerate(paints(np.linspace(-1, 1, length), colors)):
        draw.line((left + i, y, left + i, y + height), paint.background)
    draw.rectangle((left, y, left + length - 1, y + height), outline=EDGE)
    font = measures.fonts.loaded(measures.fonts.path).font_variant(size=max(1, round(0.8 * measures.size)))
    below = y + height + measures.size // 4
    for x, word, anchor in ((0, words[0], "la"), (length // 2, "0", "ma"), (length - 1, words[1], "ra")):
        draw.text((left + x, below), word, FAINT, font, anchor=anchor)
    draw.text((left, below + measures.size), "relevance", FAINT, font, anchor="la")
