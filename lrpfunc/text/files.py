"""Relevance of tokens in a file: a page, an image or a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrpfunc import heatmaps
from lrpfunc.errors import InputError
from lrpfunc.text.images import pages
from lrpfunc.text.pages import html
from lrpfunc.text.rows import Mask, Relevance, Scale, Tokens, rows
from lrpfunc.text.terminal import table
from lrpfunc.text.tokens import visible

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from PIL.Image import Image

FORMATS = ("html", "txt", "png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "pdf")
HIGHEST = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500, ".gif": 65535}  # pixels
LINES = 32  # of a page of a PDF


def save(
    path: str | Path,
    tokens: Tokens,
    relevance: Relevance,
    mask: Mask = None,
    titles: Sequence[str] = (),
    title: str = "",
    colors: str | Colormap = heatmaps.COLORS,
    limit: float | None = None,
    scale: Scale = "all",
) -> Path:
    """Write what the path's ending names, and return the path: .html, .txt (a table), or an image (.png, .pdf, ...).

    Args:
        path: where to; a file that is there is replaced.
        tokens: the strings of one sequence (length,), or a list of several.
        relevance: (length,), or of several (batch, length) or one for each, in any units.
        mask: shaped as the relevance, zero at what to leave out, as padding.
        titles: stand above the sequences, one each.
        title: the page's, or what stands above all.
        colors: see `heatmaps.colormap`.
        limit: the end m of the colours, in units of the relevance; the largest magnitude, unless given.
        scale: "all" for one scale, "each" for one per sequence.
    Errors: those of `text.html`; `InputError` for another ending, `FileNotFoundError` for a folder that does not
    exist, `IsADirectoryError` if the path itself is a folder. A PDF has pages; other images are one, and `InputError`
    says if it is higher than their format takes.

    >>> import lrpfunc, tempfile, torch
    >>> from lrpfunc import text
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(text.save(f"{folder}/key.txt", ["The", " key"], torch.tensor([0.0, 1.0])).read_text().rstrip())
    The    0
     key  +1  ++++++++++
    """
    path = heatmaps.check_path(path, FORMATS)
    ending = path.suffix.lower()
    if ending == ".html":
        page = html(tokens, relevance, mask, titles, title, colors, limit, scale)
        path.write_text(page, encoding="utf-8")
    elif ending == ".txt":
        lines = table(rows(tokens, relevance, mask, titles, limit, scale))
        path.write_text(f"{visible(title)}\n\n{lines}\n" if title else f"{lines}\n", encoding="utf-8")
    else:
        each = LINES if ending == ".pdf" else None
        _save(pages(tokens, relevance, mask, titles, title, colors, limit, scale, lines=each), path)
    return path


def _save(pictures: Sequence[Image], path: Path) -> None:
    first, *others = pictures
    _check_height(first.height, path)
    if others:
        first.save(path, save_all=True, append_images=others)
    else:
        first.save(path)


def _check_height(height: int, path: Path) -> None:
    """Errors: `InputError` for an image that is higher than its format can say."""
    most = HIGHEST.get(path.suffix.lower())
    if most is not None and height > most:
        raise InputError(
            f"cannot write {path}: the image is {height} pixels high, and {path.suffix} takes {most}. Write .html, "
            ".pdf (in pages) or .png, or show fewer tokens."
        )
